"""`wsssfast export-cams`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from wsssfast.cli.cam_options import cam_options
from wsssfast.cli.options import (
    FILE,
    config_option,
    dataset_options,
    device_option,
    finish,
    json_option,
    pick_device,
    resume_options,
    worker_option,
    write_json,
)
from wsssfast.cli.watching import log_option, watching
from wsssfast.errors import WsssError
from wsssfast.torchrun import own_cores

_PREDICTED = Path("predicted")  # in place of a labels file


def _batch_size(ctx: click.Context, param: click.Parameter, text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise WsssError(f"Expected a batch size of at least 1, or auto, found {text[:40]!r}.")
    return int(text)


@click.command()
@dataset_options
@click.option("--checkpoint", type=FILE, required=True, help="Trained classifier.")
@click.option("--out", type=FILE, required=True, help="Folder of the shards.")
@click.option(
    "--stage",
    default="final",
    show_default=True,
    help="Stages of the refinement, separated by commas, into one shard set.",
)
@cam_options
@device_option
@click.option(
    "--predict-above",
    default=0.5,
    show_default=True,
    help="With --labels predicted: the classifier's score above which a class is present.",
)
@click.option(
    "--batch-size",
    metavar="N|auto",
    default="auto",
    show_default=True,
    callback=_batch_size,
    help="Most images a forward pass; auto takes what is fast and fits.",
)
@click.option(
    "--decode-workers",
    type=click.IntRange(1),
    help="Threads that decode images.  [default: a worker's share of the cores, at most 16]",
)
@click.option("--shard-size", default=512, show_default=True, help="Images a shard.")
@worker_option
@resume_options
@log_option
@json_option
@config_option
def export_cams(
    kind: str,
    root: Path | None,
    split: str | None,
    labels: Path | None,
    checkpoint: Path,
    out: Path,
    stage: str,
    device: str,
    predict_above: float,
    batch_size: int | None,
    decode_workers: int | None,
    shard_size: int,
    worker: tuple[int, int],
    resume: bool,
    overwrite: bool,
    log: str | None,
    json_path: str | None,
    **method: Any,
) -> None:
    """Compute the CAMs of every image of a data set and store them as HDF5 shards.

    The image-level labels of the data set choose the classes of each image; with --labels predicted
    the classifier does. Images that cannot be read are listed and skipped (exit code 3); running
    the same command again continues. Several workers may share one --out: start each with its
    --worker, or all by torchrun.

    \b
    Example:
      wsssfast export-cams --dataset voc --data-root VOCdevkit/VOC2012 \\
          --checkpoint classifier.safetensors --out cams
      torchrun --nproc-per-node 8 -m wsssfast export-cams --dataset coco \\
          --data-root coco --checkpoint classifier.safetensors --out cams
    """  # fmt: skip
    from wsssfast.cam_options import CamOptions
    from wsssfast.data import open_dataset
    from wsssfast.data.unlabelled import open_unlabelled
    from wsssfast.export import export_cams as export
    from wsssfast.models.checkpoint import load_model
    from wsssfast.training.workers import own_device

    predicted = labels == _PREDICTED
    stages = tuple(part.strip() for part in stage.split(",") if part.strip())
    options = CamOptions(
        stages=stages, predict_above=predict_above if predicted else None, **method
    )
    model = load_model(checkpoint)
    if predicted:
        dataset = open_unlabelled(kind, root, split, model.config.class_names)
    else:
        dataset = open_dataset(kind, root, split, labels)
    model.to(own_device(pick_device(device)))
    with watching("export-cams", log) as watch:
        summary = export(
            model, dataset, out, options, shard_size=shard_size, batch_size=batch_size,
            decode_workers=decode_workers or own_cores(), resume=resume, overwrite=overwrite,
            worker=worker, watch=watch,
        )  # fmt: skip
    write_json(asdict(summary), json_path)
    if json_path != "-":
        more = summary.others_shards
        others = f", {more} are other workers'" if more else ""
        click.echo(
            f"{summary.images} images in {out}: {summary.written_shards} shards written, "
            f"{summary.skipped_shards} were done{others}; {summary.bytes / 1e6:.2f} MB, "
            f"{summary.bytes / max(1, summary.images):.0f} bytes an image."
        )
        source = f"its image-level labels ({dataset.label_source})"
        if predicted:
            source = f"what the classifier gives a score above {predict_above:g}"
        click.echo(f"Classes of each image: {source}.")
    finish(summary.failed)
