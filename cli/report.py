"""`wsssfast report`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from wsssfast.cli.data_options import Data, dataset_options
from wsssfast.cli.options import (
    config_option,
    device_option,
    finish,
    json_option,
    pick_device,
    progress,
    refuse,
    table,
    write_json,
)
from wsssfast.cli.paths import CAMS, CHECKPOINT, FILE, LABELS, writable_page
from wsssfast.errors import WsssError
from wsssfast.parse import parts_of

if TYPE_CHECKING:
    from wsssfast.report.ablation import Row

_OF_CAMS = (
    "cams", "kind", "root", "split", "labels", "checkpoint", "scores", "label_shards", "training",
    "images", "ids", "device",
)  # fmt: skip


def _measured(
    ctx: click.Context, param: click.Parameter, given: tuple[str, ...]
) -> dict[str, Path]:
    """Callback of --measured: name -> file."""
    found = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or not path or name in found:
            raise WsssError(
                f"Expected --measured NAME=FILE, each name once, found {text[:60]!r}.",
                "Such as --measured ablation=ablation.json.",
            )
        found[name] = Path(path)
    return found


@click.command()
@click.option("--cams", type=CAMS, help="Folder of the CAM shards.")
@dataset_options
@click.option(
    "--checkpoint", type=CHECKPOINT, help="Classifier of the shards: shows its attention."
)
@click.option(
    "--scores", type=FILE, help="JSON of `evaluate cams`; by default the shards are scored here."
)
@click.option("--label-shards", type=LABELS, help="Folder of label shards: shows their masks.")
@click.option("--training", type=FILE, help="Folder of the training run: shows its curves.")
@click.option("--out", type=FILE, default=Path("report.html"), show_default=True,
              callback=writable_page, help="HTML file.")  # fmt: skip
@click.option(
    "--images",
    type=click.IntRange(0, 200),
    default=8,
    show_default=True,
    help="How many images to show: of the highest, middle and lowest IoU.",
)
@click.option("--ids", help="Ids of images to show instead, separated by commas.")
@click.option(
    "--paper", is_flag=True, help="Instead: every table of the paper beside what was measured here."
)
@click.option("--measured", multiple=True, metavar="NAME=FILE", callback=_measured,
              help="With --paper: the --json file of a command. NAME is ablation, price, labels, "
              "seg, baseline-seg or coco-seg; again for more.")  # fmt: skip
@click.option("--ablation", multiple=True, type=FILE,
              help="Instead: the --json file of `ablate`; again for every classifier, for means "
              "and spread.")  # fmt: skip
@device_option
@json_option
@config_option
@click.pass_context
def report(
    ctx: click.Context,
    cams: Path | None,
    data: Data,
    checkpoint: Path | None,
    scores: Path | None,
    label_shards: Path | None,
    training: Path | None,
    out: Path,
    images: int,
    ids: str | None,
    paper: bool,
    measured: dict[str, Path],
    ablation: tuple[Path, ...],
    device: str,
    json_path: str | None,
) -> None:
    """Write one HTML file that shows what the pipeline did: scores, curves and pictures.

    The file needs nothing else: no network, no scripts. Images that cannot be read are listed in
    it and left out (exit code 3).

    \b
    Example:
      wsssfast report --cams cams --dataset voc --data-root VOCdevkit/VOC2012 \\
          --checkpoint classifier.safetensors --out report.html
      wsssfast report --paper --measured ablation=ablation.json --out paper.html
      wsssfast report --ablation seed0.json --ablation seed1.json --out ablations.html
    """  # fmt: skip
    if ablation:
        refuse(ctx, [*_OF_CAMS, "paper", "measured"], against="--ablation")
        _write_ablations(out, ablation, json_path)
        return
    if paper:
        refuse(ctx, [*_OF_CAMS, "json_path"], against="--paper")
        _write_paper(out, measured)
        return
    refuse(ctx, ["measured"], "--paper")
    if cams is None:
        raise WsssError(
            "Expected the CAM shards to show, found none.", "Give --cams, --paper or --ablation."
        )
    from wsssfast.models.checkpoint import load_model
    from wsssfast.report import write_report
    from wsssfast.report.scores import read_scores
    from wsssfast.shards import CamShards, LabelShards

    shards = CamShards(cams)
    found = read_scores(scores) if scores else None
    masks = LabelShards(label_shards) if label_shards else None
    model = load_model(checkpoint).to(pick_device(device)) if checkpoint else None
    dataset = data.open()
    wanted = parts_of(ids or "")
    with progress("report", len(shards)) as advance:
        summary = write_report(
            out, shards, dataset, scores=found, model=model, labels=masks, training=training,
            images=images, ids=wanted, progress=advance,
        )  # fmt: skip
    write_json(summary.to_json(), json_path)
    if json_path != "-":
        click.echo(f"{len(summary.images)} images shown, {summary.bytes / 1e6:.2f} MB.")
        click.echo(f"The report is at {summary.path.resolve()}")
    finish(summary.failed)


def _write_paper(out: Path, measured: dict[str, Path]) -> None:
    from wsssfast.report.paper import read_measured, write_paper_report

    write_paper_report(out, read_measured(measured))
    click.echo(f"The page is at {out.resolve()}")


def _write_ablations(out: Path, paths: tuple[Path, ...], json_path: str | None) -> None:
    from wsssfast.ablation import read_ablation_files
    from wsssfast.report.ablation import NAMES, rows_of, write_ablation_report

    found = read_ablation_files(paths)
    rows = rows_of(found)
    write_ablation_report(out, found, f"wsssfast: ablation of {len(found)} classifiers")
    write_json({"classifiers": len(found), "images": found[0].images,
                "settings": [row.to_json() for row in rows]}, json_path)  # fmt: skip
    if json_path == "-":
        return
    table(
        f"{len(rows)} settings, {len(found)} classifiers, {found[0].images} images",
        [*NAMES.values(), "mIoU %", "±", "gain", "±"],
        [[*row.texts(), *_figures(row)] for row in rows],
    )
    click.echo(f"The page is at {out.resolve()}")


def _figures(row: "Row") -> list[str]:
    signed = (row.gain, "+.2f"), (row.gain_spread, ".2f")
    told = [(row.mean, ".2f"), (row.spread, ".2f"), *signed]
    return ["" if value is None else format(value, how) for value, how in told]
