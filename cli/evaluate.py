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

from wsssfast.errors import WsssError


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
    unknown = [name for name in stages if name not in shards.stages]
    if unknown:
        raise WsssError(
            f"Expected a stage out of {', '.join(shards.stages)} in {folder}, found "
            f"{unknown[0]!r}.",
            "Export it with --stage.",
        )
    dataset = open_dataset(kind, root, split, labels)
    with progress("evaluate cams", len(shards)) as advance:
        results, failed = evaluate_cams(shards, dataset, stages, advance)
    if shards.missing_shards:
        click.echo(f"{len(shards.missing_shards)} shards are not exported yet.", err=True)
    for name, result in results.items():
        result["stage"] = name
        result["propagation"] = shards.identity["propagation"]
    one = next(iter(results.values()))
    write_json(one if len(results) == 1 else {"stages": results}, json_path)
    if json_path != "-":
        table(
            f"{folder}: {one['images']} images, propagation {one['propagation']}",
            ["stage", "mIoU %", "threshold", "FP %", "FN %"],
            [
                [name, f"{100 * r['miou']:.2f}", f"{r['threshold']:.2f}", f"{100 * r['fp']:.2f}",
                 f"{100 * r['fn']:.2f}"]
                for name, r in results.items()
            ],
        )  # fmt: skip
        click.echo("The thresholds were tuned on these masks.")
        if len(results) == 1:
            rows = [[name, f"{100 * iou:.2f}"] for name, iou in one["per_class"].items()]
            table("IoU per class", ["class", "IoU %"], rows)
        if one["absent_classes"]:
            click.echo(f"Left out of the mean (in no mask and no prediction): "
                       f"{', '.join(one['absent_classes'])}.")  # fmt: skip
    finish(failed)
