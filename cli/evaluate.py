"""`wsssfast evaluate`."""

from pathlib import Path

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
    from wsssfast.shards import open_shards

    shards = open_shards(folder)
    stages = shards.stages if stage == "all" else tuple(stage.split(","))
    for name in stages:
        shards.require_stage(name)
    dataset = open_dataset(kind, root, split, labels)
    with progress("evaluate cams", len(shards)) as advance:
        results, failed = evaluate_cams(shards, dataset, stages, advance)
    first = next(iter(results.values()))
    if first["images"] < len(dataset):
        click.echo(
            f"Only {first['images']} of the split's {len(dataset)} images are scored: "
            f"{len(shards.missing_shards)} shards are missing, {len(failed)} images unreadable, "
            f"{first['images_without_mask']} without mask, the rest not in the shards.",
            err=True,
        )
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
            rows = [[name, f"{100 * iou:.2f}"] for name, iou in first["per_class"].items()]
            table("IoU per class", ["class", "IoU %"], rows)
        if first["absent_classes"]:
            click.echo(f"Left out of the mean (in no mask and no prediction): "
                       f"{', '.join(first['absent_classes'])}.")  # fmt: skip
    finish(failed)
