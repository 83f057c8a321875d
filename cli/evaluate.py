"""`wsssfast evaluate`."""

from pathlib import Path
from typing import Any, Literal

import click

from wsssfast.cli.options import (
    FILE,
    config_option,
    dataset_options,
    finish,
    json_option,
    progress,
    table,
    write_json,
)


@click.group()
def evaluate() -> None:
    """Score shards against the masks of their data set."""


@evaluate.command()
@click.argument("folder", type=FILE)
@dataset_options
@click.option("--stage", default="all", show_default=True, help="Which stages, by commas.")
@json_option
@config_option
def cams(
    folder: Path,
    kind: str,
    root: Path | None,
    split: str | None,
    labels: Path | None,
    stage: str,
    json_path: str | None,
) -> None:
    """Score CAM shards by mIoU, each stage at its best background threshold of 0.00 to 0.59.

    The threshold is tuned on the masks that it is scored against, as the field does it; the whole
    sweep is in the JSON.

    \b
    Example:
      wsssfast evaluate cams cams --dataset voc --data-root VOCdevkit/VOC2012 --json scores.json
    """
    from wsssfast.data import open_dataset
    from wsssfast.evaluate import evaluate_cams
    from wsssfast.shards import CamShards

    shards = CamShards(folder)
    stages = shards.stages if stage == "all" else tuple(stage.split(","))
    for name in stages:
        shards.require_stage(name)
    dataset = open_dataset(kind, root, split, labels)
    with progress("evaluate cams", len(shards)) as advance:
        results, failed = evaluate_cams(shards, dataset, stages, advance)
    first = next(iter(results.values()))
    _tell_unscored(first, failed)
    for name, result in results.items():
        result["stage"] = name
        result["propagation"] = shards.identity.get("propagation", "unknown")
    write_json(first if len(results) == 1 else {"stages": results}, json_path)
    if json_path != "-":
        table(
            f"{folder}: {first['images']} images, propagation {first['propagation']}",
            ["stage", "mIoU %", "threshold", "FP %", "FN %"],
            [
                [name, f"{100 * r['miou']:.2f}", f"{r['threshold']:.2f}", f"{100 * r['fp']:.2f}",
                 f"{100 * r['fn']:.2f}"]
                for name, r in results.items()
            ],
        )  # fmt: skip
        click.echo("The thresholds were tuned on these masks.")
        if len(results) == 1:
            _tell_classes(first)
        _tell_absent(first)
    finish(failed)


@evaluate.command()
@click.argument("folder", type=FILE)
@dataset_options
@click.option(
    "--ignored",
    type=click.Choice(["background", "skip"]),
    default="background",
    show_default=True,
    help="Pixels predicted as 255: count them as background, or leave them out.",
)
@json_option
@config_option
def labels(
    folder: Path,
    kind: str,
    root: Path | None,
    split: str | None,
    labels: Path | None,
    ignored: Literal["background", "skip"],
    json_path: str | None,
) -> None:
    """Score label shards by mIoU; coverage is the share of pixels that are not ignored in them.

    \b
    Example:
      wsssfast evaluate labels labels --dataset voc --data-root VOCdevkit/VOC2012
    """
    from wsssfast.data import open_dataset
    from wsssfast.evaluate import evaluate_labels
    from wsssfast.shards import LabelShards

    shards = LabelShards(folder)
    dataset = open_dataset(kind, root, split, labels)
    with progress("evaluate labels", len(shards)) as advance:
        result, failed = evaluate_labels(shards, dataset, ignored, advance)
    _tell_unscored(result, failed)
    write_json(result, json_path)
    if json_path != "-":
        keys = {"miou": "mIoU", "fp": "FP", "fn": "FN", "coverage": "coverage"}
        table(
            f"{folder}: {result['images']} images",
            ["ignored", *(f"{name} %" for name in keys.values())],
            [[ignored, *(f"{100 * result[key]:.2f}" for key in keys)]],
        )
        _tell_classes(result)
        _tell_absent(result)
    finish(failed)


def _tell_unscored(result: dict[str, Any], failed: dict[str, str]) -> None:
    if result["images"] < result["images_of_split"]:
        click.echo(
            f"Only {result['images']} of the split's {result['images_of_split']} images are "
            f"scored: {len(result['missing_shards'])} shards are missing, {len(failed)} images "
            f"unreadable, {result['images_without_mask']} without mask, the rest not in the "
            "shards.",
            err=True,
        )


def _tell_classes(result: dict[str, Any]) -> None:
    rows = [[name, f"{100 * iou:.2f}"] for name, iou in result["per_class"].items()]
    table("IoU per class", ["class", "IoU %"], rows)


def _tell_absent(result: dict[str, Any]) -> None:
    if result["absent_classes"]:
        click.echo(
            "Left out of the mean (in no mask and no prediction): "
            f"{', '.join(result['absent_classes'])}."
        )
