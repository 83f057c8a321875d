"""`wsssfast report`."""

from pathlib import Path

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
    writable_page,
    write_json,
)


@click.command()
@click.option("--cams", type=FILE, required=True, help="Folder of the CAM shards.")
@dataset_options
@click.option("--checkpoint", type=FILE, help="Classifier of the shards: shows its attention.")
@click.option(
    "--scores", type=FILE, help="JSON of `evaluate cams`; by default the shards are scored here."
)
@click.option("--label-shards", type=FILE, help="Folder of label shards: shows their masks.")
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
@device_option
@json_option
@config_option
def report(
    cams: Path,
    kind: str,
    root: Path | None,
    split: str | None,
    labels: Path | None,
    checkpoint: Path | None,
    scores: Path | None,
    label_shards: Path | None,
    training: Path | None,
    out: Path,
    images: int,
    ids: str | None,
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
    """  # fmt: skip
    from wsssfast.data import open_dataset
    from wsssfast.models.checkpoint import load_model
    from wsssfast.report import write_report
    from wsssfast.report.scores import read_scores
    from wsssfast.shards import CamShards, LabelShards

    shards = CamShards(cams)
    found = read_scores(scores) if scores else None
    masks = LabelShards(label_shards) if label_shards else None
    model = load_model(checkpoint).to(pick_device(device)) if checkpoint else None
    dataset = open_dataset(kind, root, split, labels)
    wanted = [part.strip() for part in (ids or "").split(",") if part.strip()]
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
