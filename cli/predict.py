"""`wsssfast predict`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from wsssfast.cli.cam_options import numbers
from wsssfast.cli.convert import require_tgz
from wsssfast.cli.data_options import Data, dataset_options
from wsssfast.cli.filling import filling_options
from wsssfast.cli.options import (
    config_option,
    device_option,
    finish,
    json_option,
    pick_device,
    progress,
    recipe_option,
    refuse,
    shards_told,
    write_json,
)
from wsssfast.cli.paths import CHECKPOINT, FILE, writable_folder, writable_page
from wsssfast.cli.refine_options import CRF, crf_constants, pick_crf
from wsssfast.errors import counted
from wsssfast.torchrun import own_cores

if TYPE_CHECKING:
    from wsssfast.cli.filling import BeginFilling


@click.command()
@click.option("--checkpoint", type=CHECKPOINT, required=True, help="Trained segmenter.")
@click.option("--out", type=FILE, required=True, help="Folder of the masks, as label shards.")
@dataset_options
@recipe_option("predict")
@click.option(
    "--scales", default="1.0", show_default=True, callback=numbers,
    help="Image scales, separated by commas.",
)  # fmt: skip
@click.option(
    "--fuse",
    type=click.Choice(["max", "mean"]),
    default="mean",
    show_default=True,
    help="What joins the probabilities of scales and mirror images.",
)
@click.option("--flip/--no-flip", default=True, show_default=True, help="See mirror images too.")
@click.option(
    "--tile", default=0, show_default=True, help="Side of the windows that larger images are seen "
    "through; 0: whole.",
)  # fmt: skip
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="Of the network.",
)
@click.option(
    "--refine",
    type=click.Choice(["none", "crf"]),
    default="none",
    show_default=True,
    help="What is done to the probabilities.",
)
@crf_constants(gaussian_sxy=4, bilateral_sxy=83, bilateral_srgb=5, bilateral_compat=3)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Processes on a CPU.  [default: a worker's share of the cores; 1 on a GPU]",
)
@click.option("--shard-size", default=512, show_default=True, help="Images a shard.")
@click.option(
    "--png",
    type=FILE,
    callback=writable_folder,
    help="Write the masks as palette PNG files into a folder too.",
)
@click.option(
    "--archive",
    type=FILE,
    callback=writable_page,
    help="Write VOC's results archive (.tgz) for its server too.",
)
@device_option
@filling_options
@json_option
@config_option
@click.pass_context
def predict(
    ctx: click.Context,
    /,
    checkpoint: Path,
    out: Path,
    data: Data,
    recipe: str | None,
    scales: tuple[float, ...],
    fuse: Literal["max", "mean"],
    flip: bool,
    tile: int,
    precision: Literal["fp32", "bf16", "fp16"],
    refine: str,
    crf_backend: Literal["auto", "pydensecrf", "torch", "triton"],
    workers: int | None,
    shard_size: int,
    png: Path | None,
    archive: Path | None,
    device: str,
    filling: "BeginFilling",
    json_path: str | None,
    **constants: Any,
) -> None:
    """Segment the images of a data set with a trained segmenter.

    Their image labels are not used; --labels none needs none, as in a test set. Masks become label
    shards: resumable, shared by several --worker, read by `evaluate seg`, `convert` and
    `train-seg`. --png and --archive are written when all are done.

    \b
    Example:
      wsssfast predict --checkpoint seg/last.safetensors --dataset voc \\
          --data-root VOCdevkit/VOC2012 --split val --recipe paper --out masks
      wsssfast predict --checkpoint seg/last.safetensors --dataset voc \\
          --data-root VOCdevkit/VOC2012 --split test --labels none --recipe paper --out test \\
          --archive results.tgz
    """  # fmt: skip
    if refine == "none":
        refuse(ctx, [*CRF, "crf_backend"], "--refine crf")
    if archive:
        require_tgz(archive)
    crf = pick_crf(constants)
    from wsssfast.convert_labels import require_voc
    from wsssfast.models.checkpoint import load_segmenter
    from wsssfast.predict import PredictOptions
    from wsssfast.predict import predict as run
    from wsssfast.segment import SegmentOptions
    from wsssfast.training.workers import own_device

    options = PredictOptions(
        SegmentOptions(scales, fuse, flip, tile), crf if refine == "crf" else None, precision
    )
    names = load_segmenter(checkpoint).config.class_names
    if archive:
        require_voc(names, checkpoint)
    dataset = data.open_images(names)
    place = own_device(pick_device(device))
    with filling("predict") as how:
        summary = run(
            checkpoint, dataset, out, options, device=place, backend=crf_backend,
            workers=workers or (own_cores() if place == "cpu" else 1), shard_size=shard_size,
            filling=how,
        )  # fmt: skip
    write_json(asdict(summary), json_path)
    if json_path != "-":
        click.echo(f"{counted(summary.images, 'mask')} in {out}: {shards_told(summary)}")
    if png or archive:
        _write(out, png, archive, summary.others_shards, quiet=json_path == "-")
    finish(summary.failed)


def _write(out: Path, png: Path | None, archive: Path | None, missing: int, *, quiet: bool) -> None:
    """The masks as files, where all shards are there; told on stderr where stdout is for JSON."""
    from wsssfast.convert_labels import to_png, to_voc_archive
    from wsssfast.shards import LabelShards

    if missing:
        click.echo("No files yet: other workers have shards in hand; run this again.", err=True)
        return
    shards = LabelShards(out)
    for way, place in ((to_png, png), (to_voc_archive, archive)):
        if place:
            with progress(f"write {place.name}", len(shards)) as advance:
                count = way(shards, place, advance)
            click.echo(f"{counted(count, 'mask')} in {place}", err=quiet)
