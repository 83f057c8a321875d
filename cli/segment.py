"""`wsssfast train-seg`."""

from pathlib import Path
from typing import Any

import click

from wsssfast.cli.data_options import Data, dataset_options
from wsssfast.cli.fields import pick_fields
from wsssfast.cli.options import finish, pick_device
from wsssfast.cli.paths import FILE, LABELS
from wsssfast.cli.training import progress, settings_of, tell, training_options
from wsssfast.errors import WsssError
from wsssfast.training.options import RunOptions, SegmenterOptions


@click.command()
@click.option("--label-shards", type=LABELS, help="Folder of the label shards to learn from.")
@click.option(
    "--true-masks",
    is_flag=True,
    help="Learn from the data set's own masks instead: what full supervision would have.",
)
@dataset_options
@click.option("--val-split", help="Split whose masks score each epoch; never trained on.")
@click.option("--out", type=FILE, required=True, help="Folder of the run.")
@click.option(
    "--trunk",
    default="vit",
    show_default=True,
    help="vit: a classifier's network with a linear decoder; resnet38: DeepLabV1; or a "
    "convolutional network of timm (resnet50): DeepLabV3+.",
)
@click.option(
    "--pretrained",
    metavar="FILE|timm|none",
    help="Weights to start from: of vit the classifier's checkpoint, of resnet38 a published file, "
    "of timm's a file or, by default, a download.",
)
@training_options(SegmenterOptions, "segmenter")
def train_seg(
    label_shards: Path | None,
    true_masks: bool,
    data: Data,
    val_split: str | None,
    out: Path,
    trunk: str,
    pretrained: str | None,
    device: str,
    resume: bool,
    overwrite: bool,
    recipe: str | None,
    json_path: str | None,
    **fields: Any,
) -> None:
    """Train a segmenter on the masks of label shards.

    Images without a label are left out, 255 is ignored; image labels are not used (--labels none
    needs none). Leaves last.safetensors and, with --val-split, best.safetensors: the epoch that
    scores best on its masks, which should not be what is reported. Interrupted, the same command
    goes on exactly where it stopped. Several GPUs:
    torchrun --nproc-per-node 8 -m wsssfast train-seg …

    \b
    Example:
      wsssfast train-seg --label-shards labels --dataset voc --data-root VOCdevkit/VOC2012 \\
          --split train_aug --val-split val --pretrained run/last.safetensors --out seg
      wsssfast train-seg --label-shards labels --dataset voc --data-root VOCdevkit/VOC2012 \\
          --split train_aug --recipe deeplabv3plus --out seg
    """  # fmt: skip
    options = SegmenterOptions(**pick_fields(SegmenterOptions, fields))
    run = RunOptions(**pick_fields(RunOptions, fields))
    from wsssfast.models.segmenter import SegmenterConfig
    from wsssfast.shards import LabelShards
    from wsssfast.training.fit import fit
    from wsssfast.training.folder import run_folder
    from wsssfast.training.masks import TrueMasks, with_labels
    from wsssfast.training.segmenter import segmenter_task
    from wsssfast.training.starts import start_of
    from wsssfast.training.workers import join_workers

    if (label_shards is None) is not true_masks:
        raise WsssError(
            f"Expected --label-shards or --true-masks, found {'both' if true_masks else 'neither'}."
        )
    shards = LabelShards(label_shards) if label_shards else None
    dataset = data.open_images(shards.class_names) if shards else data.open()
    held_out = data.held_out(val_split)
    masks = shards or TrueMasks(dataset)
    dataset = with_labels(dataset, masks, held_out)
    about, start = start_of(trunk, pretrained)
    config = SegmenterConfig(dataset.class_names, **about)
    settings = settings_of(dataset)
    with join_workers(pick_device(device)) as workers:
        _, task = segmenter_task(dataset, masks, config, options, workers, start, held_out)
        with (
            run_folder(
                out, dataset, held_out, settings, workers, resume=resume, overwrite=overwrite
            ),
            progress("train-seg", workers.first) as report,
        ):
            done = fit(task, options, out, run=run, workers=workers, report=report)
        if not workers.first:
            return
    done.failed = {**(shards.failed if shards else {}), **done.failed}
    tell(out, done, json_path)
    finish(done.failed, shards.missing_names if shards else (), label_shards)
