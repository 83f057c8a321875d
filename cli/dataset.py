"""`wsssfast dataset`."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wsssfast.cli.data_options import Data, dataset_options
from wsssfast.cli.options import (
    finish,
    json_option,
    progress,
    table,
    write_json,
)
from wsssfast.cli.paths import FILE
from wsssfast.errors import USER_ERROR, counted, listing

if TYPE_CHECKING:
    from wsssfast.data.check import DatasetReport


@click.group()
def dataset() -> None:
    """Check a data set, count it, or write the synthetic one.

    \b
    Example:
      wsssfast dataset check --dataset folder --data-root photos
    """


@dataset.command()
@dataset_options
@json_option
def check(data: Data, json_path: str | None) -> None:
    """Read every image, label and mask, and list what would stop or spoil a run.

    Exit code 2 where something does not fit, 3 where files cannot be read.

    \b
    Example:
      wsssfast dataset check --dataset voc --data-root VOCdevkit/VOC2012 --split train_aug
    """
    report = _report(data, decode=True, json_path=json_path)
    for note in report.notes:
        click.echo(f"note: {note}.", err=True)
    for problem in report.problems[:20]:
        click.echo(f"does not fit: {problem}", err=True)
    if report.problems:
        for image_id, reason in list(report.unreadable.items())[:20]:
            click.echo(f"unreadable: {image_id}: {reason}", err=True)
        unread = f"; {counted(len(report.unreadable), 'input')} could not be read"
        click.echo(
            "Error: Expected masks of their images' size and classes, found "
            f"{len(report.problems)} that do not fit{unread if report.unreadable else ''}.",
            err=True,
        )
        sys.exit(USER_ERROR)
    finish(report.unreadable)


@dataset.command()
@dataset_options
@json_option
def stats(data: Data, json_path: str | None) -> None:
    """Count images, labels and masks without decoding the images.

    \b
    Example:
      wsssfast dataset stats --dataset coco --data-root coco --split train2014
    """
    _report(data, decode=False, json_path=json_path)


@dataset.command()
@click.option("--out", type=FILE, required=True, help="A new or empty folder.")
@click.option("--split", default="train", show_default=True, help="train, val, or train:COUNT.")
def synth(out: Path, split: str) -> None:
    """Write the embedded synthetic data set in the folder layout.

    \b
    Example:
      wsssfast dataset synth --out scenes --split train:50
      wsssfast dataset check --dataset folder --data-root scenes
    """
    from wsssfast.data.synthetic import open_synthetic, write_folder

    opened = open_synthetic(split)
    write_folder(opened, out)
    click.echo(f"{len(opened)} scenes in {out}; read them with --dataset folder --data-root {out}")


def _report(data: Data, *, decode: bool, json_path: str | None) -> "DatasetReport":
    from wsssfast.data.check import check_dataset

    opened = data.open_images(())
    with progress("dataset", len(opened)) as advance:
        report = check_dataset(opened, decode=decode, progress=advance)
    write_json(asdict(report), json_path)
    if json_path != "-":
        rows = [
            [f"{n + 1} {name}", str(report.label_counts[name]),
             str(report.mask_counts[name]) if report.masks else ""]
            for n, name in enumerate(opened.class_names)
        ]  # fmt: skip
        title = f"{opened.name} {opened.split}: images per class (labels: {opened.label_source})"
        if rows:
            table(title, ["class", "label", "mask"], rows)
        sizes = report.sizes
        masks = ""
        if report.masks:
            others = listing(report.disagreements)
            masks = (
                f"; {counted(report.masks, 'mask')} ({report.with_ignore} with 255), of which "
                f"{len(report.disagreements)} have other classes than the labels"
                + (f" ({others})" if others else "")
            )
        click.echo(
            f"{counted(report.images, 'image')}: {report.multi_label} with several labels, "
            f"{report.unlabelled} with none{masks}."
        )
        if sizes:
            click.echo(
                f"Width {sizes['min_width']}-{sizes['max_width']}, "
                f"height {sizes['min_height']}-{sizes['max_height']} pixels."
            )
    return report
