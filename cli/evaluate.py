"""`wsssfast evaluate`."""

from pathlib import Path
from typing import Any, Literal

import click

from wsssfast.cli.data_options import Data, dataset_options
from wsssfast.cli.options import (
    config_option,
    finish,
    json_option,
    progress,
    table,
    write_json,
)
from wsssfast.cli.paths import CAMS, FILE, LABELS, writable_page
from wsssfast.errors import counted
from wsssfast.parse import parts_of

_AGAIN = "Complete the shards, then run this command again."


@click.group()
def evaluate() -> None:
    """Score shards against the masks of their data set.

    \b
    Example:
      wsssfast evaluate labels labels --dataset folder --data-root photos
    """


@evaluate.command()
@click.argument("folder", type=CAMS)
@dataset_options
@click.option("--stage", default="all", show_default=True, help="Which stages, by commas.")
@json_option
@config_option
def cams(
    folder: Path,
    data: Data,
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
    from wsssfast.evaluate import evaluate_cams
    from wsssfast.shards import CamShards

    shards = CamShards(folder)
    stages = shards.stages if stage == "all" else tuple(parts_of(stage))
    for name in stages:
        shards.require_stage(name)
    dataset = data.open()
    with progress("evaluate cams", len(shards)) as advance:
        results, failed = evaluate_cams(shards, dataset, stages, advance)
    first = next(iter(results.values()))
    _tell_unscored(first, failed)
    for name, result in results.items():
        result["stage"] = name
        result["unreadable"] = failed
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
    finish(failed, shards.missing_names, folder, _AGAIN)


@evaluate.command()
@click.argument("folder", type=LABELS)
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
    data: Data,
    ignored: Literal["background", "skip"],
    json_path: str | None,
) -> None:
    """Score label shards by mIoU; coverage is the share of pixels that are not ignored in them.

    \b
    Example:
      wsssfast evaluate labels labels --dataset voc --data-root VOCdevkit/VOC2012
    """
    from wsssfast.evaluate import evaluate_labels
    from wsssfast.shards import LabelShards

    shards = LabelShards(folder)
    dataset = data.open()
    with progress("evaluate labels", len(shards)) as advance:
        result, failed = evaluate_labels(shards, dataset, ignored, advance)
    _tell_unscored(result, failed)
    write_json({**result, "unreadable": failed}, json_path)
    if json_path != "-":
        keys = {"miou": "mIoU", "fp": "FP", "fn": "FN", "coverage": "coverage"}
        table(
            f"{folder}: {result['images']} images",
            ["ignored", *(f"{name} %" for name in keys.values())],
            [[ignored, *(f"{100 * result[key]:.2f}" for key in keys)]],
        )
        _tell_classes(result)
        _tell_absent(result)
    finish(failed, shards.missing_names, folder, _AGAIN)


@evaluate.command()
@click.argument("folder", type=FILE)
@dataset_options
@click.option("--classes", help="Names to take means over, by commas, with the background; all.")
@click.option("--report", type=FILE, callback=writable_page,
              help="Write an HTML page with the best and the worst images.")  # fmt: skip
@click.option("--images", type=click.IntRange(0, 200), default=12, show_default=True,
              help="How many images that page shows.")  # fmt: skip
@json_option
@config_option
def seg(
    folder: Path,
    data: Data,
    classes: str | None,
    report: Path | None,
    images: int,
    json_path: str | None,
) -> None:
    """Score predicted masks: label shards of `predict`, or a folder of PNG masks.

    mIoU, accuracies and the IoU of boundaries (Cheng et al., 2021); the JSON holds the confusion
    matrix and the mIoU of each image too. Pixels predicted as 255 count as background.

    \b
    Example:
      wsssfast evaluate seg masks --dataset voc --data-root VOCdevkit/VOC2012 --split val \\
          --report masks.html
    """
    from wsssfast.evaluate.segmentation import evaluate_segmentation, open_predicted
    from wsssfast.report.segmentation import write_segmentation_report

    dataset = data.open()
    predicted = open_predicted(folder, dataset)
    chosen = parts_of(classes or "")
    with progress("evaluate seg", len(predicted.ids)) as advance:
        result, scored, failed = evaluate_segmentation(predicted, dataset, chosen, advance)
    _tell_unscored(result, failed)
    if report:
        write_segmentation_report(report, predicted, dataset, result, scored, failed, images)
    image_miou = {one.id: one.miou for one in scored}
    write_json({**result, "image_miou": image_miou, "unreadable": failed}, json_path)
    if json_path != "-":
        keys = {"miou": "mIoU", "boundary_miou": "boundary mIoU", "pixel_accuracy": "pixels right",
                "mean_accuracy": "mean accuracy"}  # fmt: skip
        table(
            f"{folder}: {result['images']} images",
            ["", *(f"{name} %" for name in keys.values())],
            [["all" if not chosen else f"{len(chosen)} classes",
              *(f"{100 * result[key]:.2f}" for key in keys)]],
        )  # fmt: skip
        parts = [result[key] for key in ("per_class", "per_class_accuracy", "per_class_boundary")]
        rows = [
            [name, *(f"{100 * part[name]:.2f}" if name in part else "" for part in parts)]
            for name in parts[0]
        ]
        table("By class", ["class", "IoU %", "accuracy %", "boundary IoU %"], rows)
        _tell_absent(result)
        if report:
            click.echo(f"The page is at {report.resolve()}")
    finish(failed, predicted.missing_names, folder, _AGAIN)


def _tell_unscored(result: dict[str, Any], failed: dict[str, str]) -> None:
    images, split = result["images"], result["images_of_split"]
    if images < split:
        without = result["images_without_mask"]
        reasons = {
            f"{counted(len(result['missing_shards']), 'shard')} missing": result["missing_shards"],
            f"{len(failed)} could not be read or do not fit": failed,
            f"{without} without mask": without,
            f"{split - images - without - len(failed)} not in what was scored":
                split - images - without - len(failed),
        }  # fmt: skip
        told = ", ".join(reason for reason, there in reasons.items() if there)
        click.echo(f"Only {images} of the split's {split} images are scored: {told}.", err=True)
    if result["images_of_others"]:
        others = counted(result["images_of_others"], "image")
        click.echo(f"Not scored, as the split does not have them: {others}.", err=True)


def _tell_classes(result: dict[str, Any]) -> None:
    rows = [[name, f"{100 * iou:.2f}"] for name, iou in result["per_class"].items()]
    table("IoU per class", ["class", "IoU %"], rows)


def _tell_absent(result: dict[str, Any]) -> None:
    if result["absent_classes"]:
        click.echo(
            "Left out of the mean (in no mask and no prediction): "
            f"{', '.join(result['absent_classes'])}."
        )
