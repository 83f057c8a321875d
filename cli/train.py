"""`wsssfast train`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from wsssfast.cli.data_options import Data, dataset_options
from wsssfast.cli.fields import pick_fields
from wsssfast.cli.options import finish, pick_device
from wsssfast.cli.paths import FILE
from wsssfast.cli.training import progress, settings_of, tell, training_options
from wsssfast.errors import WsssError
from wsssfast.training.options import ClassifierOptions, RunOptions


@click.command()
@dataset_options
@click.option("--val-split", help="Split to score after each epoch; its images are not trained on.")
@click.option(
    "--holdout",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Hold out every N-th of the sorted ids instead, from the first; 0: none.",
)
@click.option("--out", type=FILE, required=True, help="Folder of the run.")
@click.option(
    "--arch",
    default="deit_small_patch16_224",
    show_default=True,
    help="A plain ViT of timm, also NAME.TAG.",
)
@click.option(
    "--pretrained",
    default="timm",
    show_default=True,
    help="ImageNet weights: a file, `timm` to download them, or `none`.",
)
@click.option("--image-size", default=224, show_default=True, help="Side of the training crops.")
@click.option(
    "--patch-head/--no-patch-head",
    default=True,
    show_default=True,
    help="With the convolution over patch tokens, or without as MCTformer-V1.",
)
@click.option("--one-token", is_flag=True, help="One class token for all classes (TS-CAM).")
@click.option(
    "--patch-decay",
    default=1.0,
    show_default=True,
    help="Patch logits: weight of the n-th highest score is its n-th power; 1: the mean; "
    "MCTformer+: 0.996.",
)
@click.option(
    "--split-positions", is_flag=True, help="Resize positions of patches as MCTformer+ does."
)
@click.option("--final-norm", is_flag=True, help="The backbone's last norm before the patch head.")
@click.option("--adaptive-fusion", is_flag=True, help="Learn weights of layers and heads (WeakTr).")
@training_options(ClassifierOptions, "train")
def train(
    data: Data,
    val_split: str | None,
    holdout: int,
    out: Path,
    arch: str,
    pretrained: str,
    image_size: int,
    patch_head: bool,
    one_token: bool,
    patch_decay: float,
    split_positions: bool,
    final_norm: bool,
    adaptive_fusion: bool,
    device: str,
    resume: bool,
    overwrite: bool,
    recipe: str | None,
    json_path: str | None,
    **fields: Any,
) -> None:
    """Train the classifier on the image-level labels of a data set.

    Leaves last.safetensors (to export CAMs from), best.safetensors (by mAP on what is held out),
    log.jsonl, TensorBoard's files and the state to continue from: interrupted, the same command
    goes on exactly where it stopped. Several GPUs:
    torchrun --nproc-per-node 8 -m wsssfast train …

    \b
    Example:
      wsssfast train --dataset voc --data-root VOCdevkit/VOC2012 --split train_aug \\
          --val-split val --recipe paper-voc --out run
    """  # fmt: skip
    options = ClassifierOptions(**pick_fields(ClassifierOptions, fields))
    run = RunOptions(**pick_fields(RunOptions, fields))
    from wsssfast.data.dataset import hold_out
    from wsssfast.models.backbone import backbone_weights
    from wsssfast.models.classifier import ClassTokenViT
    from wsssfast.models.classifier_config import ClassifierConfig
    from wsssfast.training.classifier import classifier_task
    from wsssfast.training.fit import fit
    from wsssfast.training.folder import run_folder
    from wsssfast.training.workers import join_workers

    if val_split and holdout:
        raise WsssError("Expected --val-split or --holdout, found both.", "Leave one out.")
    dataset = data.open()
    held_out = data.held_out(val_split)
    if held_out:
        known = held_out.by_id
        dataset = dataset.subset(lambda n, item: item.id not in known, dataset.split)
    if holdout:
        dataset, held_out = hold_out(dataset, holdout)
    config = ClassifierConfig.for_backbone(arch, dataset.class_names, image_size)
    config = replace(
        config, patch_head=patch_head, one_token=one_token, patch_decay=patch_decay,
        split_positions=split_positions, final_norm=final_norm, adaptive_fusion=adaptive_fusion,
    )  # fmt: skip
    settings = settings_of(dataset)
    with join_workers(pick_device(device)) as workers:
        ClassTokenViT(config)  # refuses what is no backbone before its weights are looked for
        backbone = None if pretrained == "none" else backbone_weights(arch, pretrained)
        _, task = classifier_task(dataset, config, options, workers, backbone, held_out)
        with (
            run_folder(
                out, dataset, held_out, settings, workers, resume=resume, overwrite=overwrite
            ),
            progress("train", workers.first) as report,
        ):
            done = fit(task, options, out, run=run, workers=workers, report=report)
        if not workers.first:
            return
    tell(out, done, json_path)
    finish(done.failed)
