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
    progress,
    resume_options,
    worker_option,
    write_json,
)


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
@click.option("--batch-size", default=8, show_default=True, help="Most images a forward pass.")
@click.option("--decode-workers", default=2, show_default=True, help="Threads that decode images.")
@click.option("--shard-size", default=512, show_default=True, help="Images a shard.")
@worker_option
@resume_options
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
    batch_size: int,
    decode_workers: int,
    shard_size: int,
    worker: tuple[int, int],
    resume: bool,
    overwrite: bool,
    json_path: str | None,
    **method: Any,
) -> None:
    """Compute the CAMs of every image of a data set and store them as HDF5 shards.

    The image-level labels of the data set choose the classes of each image. Images that cannot be
    read are listed and skipped (exit code 3); running the same command again continues. Several
    workers may share one --out: start each with its --worker, or all by torchrun.

    \b
    Example:
      wsssfast export-cams --dataset voc --data-root VOCdevkit/VOC2012 \\
          --checkpoint classifier.safetensors --out cams
      torchrun --nproc-per-node 8 -m wsssfast export-cams --dataset coco \\
          --data-root coco --checkpoint classifier.safetensors --out cams
    """  # fmt: skip
    from wsssfast.compute import CamOptions
    from wsssfast.data import open_dataset
    from wsssfast.export import export_cams as export
    from wsssfast.models.checkpoint import load_model
    from wsssfast.training.workers import own_device

    stages = tuple(part.strip() for part in stage.split(",") if part.strip())
    options = CamOptions(stages=stages, **method)
    model = load_model(checkpoint)
    dataset = open_dataset(kind, root, split, labels)
    model.to(own_device(pick_device(device)))
    with progress("export-cams", len(dataset)) as advance:
        summary = export(
            model, dataset, out, options, shard_size=shard_size, batch_size=batch_size,
            decode_workers=decode_workers, resume=resume, overwrite=overwrite, worker=worker,
            progress=advance,
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
        click.echo(f"Classes of each image: its image-level labels ({dataset.label_source}).")
    finish(summary.failed)
