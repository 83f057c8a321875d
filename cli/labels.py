"""`wsssfast export-labels`."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import click

from wsssfast.cli.cam_options import numbers
from wsssfast.cli.options import (
    FILE,
    config_option,
    finish,
    json_option,
    progress,
    resume_options,
    write_json,
)
from wsssfast.errors import SOME_UNREADABLE, WsssError, listing


def _background(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[float, ...]:
    if text is None:
        raise WsssError(
            "Expected a background threshold, found none.",
            "Give --background T, or LOW,HIGH to ignore what lies between; "
            "`wsssfast evaluate cams` tells the best T of each stage.",
        )
    return numbers(ctx, param, text)


@click.command()
@click.option("--cams", type=FILE, required=True, help="Folder of the CAM shards.")
@click.option("--out", type=FILE, required=True, help="Folder of the label shards.")
@click.option("--stage", help="Which stage of the CAM shards; the last stored by default.")
@click.option(
    "--refine",
    type=click.Choice(["none"]),
    default="none",
    show_default=True,
    help="What is done to the CAMs before.",
)
@click.option(
    "--background",
    metavar="T|LOW,HIGH",
    callback=_background,
    help="Score at or below which a pixel is background; of two, what lies between is ignored.",
)
@resume_options
@json_option
@config_option
def export_labels(
    cams: Path,
    out: Path,
    stage: str | None,
    refine: Literal["none"],
    background: tuple[float, ...],
    resume: bool,
    overwrite: bool,
    json_path: str | None,
) -> None:
    """Make masks from CAM shards and store them as label shards, one for each CAM shard.

    Each pixel gets the image's class of the largest map, background where that is at or below the
    threshold, 255 (ignore) between two thresholds. Images without CAM are listed (exit code 3);
    running the same command again continues.

    \b
    Example:
      wsssfast export-labels --cams cams --background 0.45 --out labels
    """
    from wsssfast.labels import LabelOptions
    from wsssfast.labels import export_labels as export
    from wsssfast.shards import CamShards

    shards = CamShards(cams)
    options = LabelOptions(stage or shards.stages[-1], background, refine)
    with progress("export-labels", len(shards)) as advance:
        summary = export(shards, out, options, resume=resume, overwrite=overwrite, progress=advance)
    write_json({**asdict(summary), "missing_shards": shards.missing_shards}, json_path)
    if json_path != "-":
        click.echo(
            f"{summary.images} masks in {out} from the stage {options.stage}: "
            f"{summary.written_shards} shards written, {summary.skipped_shards} were done; "
            f"{summary.bytes / 1e6:.2f} MB, {summary.bytes / max(1, summary.images):.0f} bytes "
            "an image."
        )
    if shards.missing_shards:
        click.echo(
            f"Left out, as they are missing in {cams}: {listing(shards.missing_names)}. Run "
            "export-cams again, then this command.",
            err=True,
        )
    finish(summary.failed)
    if shards.missing_shards:
        sys.exit(SOME_UNREADABLE)
