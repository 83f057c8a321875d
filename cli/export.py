"""`wsssfast export-cams`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from wsssfast.cli.options import (
    FILE,
    config_option,
    dataset_options,
    device_option,
    finish,
    json_option,
    pick_device,
    progress,
    write_json,
)


def _numbers(ctx: click.Context, param: click.Parameter, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"expected numbers separated by commas, found {text!r}") from error


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
@click.option("--ratio", default=0.3, show_default=True, help="Share of related patches.")
@click.option("--alpha", default=1.2, show_default=True, help="Weight of the related mean.")
@click.option(
    "--scales",
    default="1.0",
    show_default=True,
    callback=_numbers,
    help="Image scales, separated by commas; summed.",
)
@click.option("--flip/--no-flip", default=True, show_default=True, help="Sum the mirror image too.")
@click.option(
    "--propagation",
    type=click.Choice(["gather", "scatter"]),
    default="gather",
    show_default=True,
    help="Eq. 6 as MCTformer computes it, or to the letter.",
)
@click.option(
    "--related-by",
    type=click.Choice(["attention", "tokens"]),
    default="attention",
    show_default=True,
    help="What ranks the related patches.",
)
@click.option(
    "--c2p-layers",
    default=3,
    show_default=True,
    help="Last layers of the class-to-patch attention.",
)
@click.option(
    "--p2p-layers",
    default=12,
    show_default=True,
    help="Last layers of the patch-to-patch attention.",
)
@click.option(
    "--include-self/--exclude-self",
    default=True,
    show_default=True,
    help="Whether a patch may be related to itself.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="Of the network; maps are float32.",
)
@device_option
@click.option("--batch-size", default=8, show_default=True, help="Most images a forward pass.")
@click.option("--decode-workers", default=2, show_default=True, help="Threads that decode images.")
@click.option("--shard-size", default=512, show_default=True, help="Images a shard.")
@click.option(
    "--resume/--no-resume",
    default=True,
    show_default=True,
    help="Continue a folder of the same configuration, or refuse one that is not empty.",
)
@click.option("--overwrite", is_flag=True, help="Discard the shards in --out first.")
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
    resume: bool,
    overwrite: bool,
    json_path: str | None,
    **method: Any,
) -> None:
    """Compute the CAMs of every image of a data set and store them as HDF5 shards.

    The image-level labels of the data set choose the classes of each image. Images that cannot be
    read are listed and skipped (exit code 3); running the same command again continues.

    \b
    Example:
      wsssfast export-cams --dataset voc --data-root VOCdevkit/VOC2012 \\
          --checkpoint classifier.safetensors --out cams
    """  # fmt: skip
    from wsssfast.compute import CamOptions
    from wsssfast.data import open_dataset
    from wsssfast.export import export_cams as export
    from wsssfast.models.checkpoint import load_model

    stages = tuple(part.strip() for part in stage.split(",") if part.strip())
    options = CamOptions(stages=stages, **method)
    model = load_model(checkpoint)
    dataset = open_dataset(kind, root, split, labels)
    model.to(pick_device(device))
    with progress("export-cams", len(dataset)) as advance:
        summary = export(
            model, dataset, out, options, shard_size=shard_size, batch_size=batch_size,
            decode_workers=decode_workers, resume=resume, overwrite=overwrite, progress=advance,
        )  # fmt: skip
    write_json(asdict(summary), json_path)
    if json_path != "-":
        click.echo(
            f"{summary.images} images in {out}: {summary.written_shards} shards written, "
            f"{summary.skipped_shards} were done; {summary.bytes / 1e6:.2f} MB, "
            f"{summary.bytes / max(1, summary.images):.0f} bytes an image."
        )
        click.echo(f"Classes of each image: its image-level labels ({dataset.label_source}).")
    finish(summary.failed)
