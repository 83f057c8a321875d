"""`wsssfast export-cams`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsssfast.cli.cam_options import cam_options
from wsssfast.cli.data_options import Data, dataset_options
from wsssfast.cli.filling import filling_options
from wsssfast.cli.network_options import network_options
from wsssfast.cli.options import (
    config_option,
    device_option,
    finish,
    json_option,
    pick_device,
    recipe_option,
    refuse,
    shards_told,
    write_json,
)
from wsssfast.cli.paths import CHECKPOINT, FILE
from wsssfast.errors import counted
from wsssfast.parse import parts_of
from wsssfast.torchrun import own_cores

if TYPE_CHECKING:
    from wsssfast.cli.filling import BeginFilling


@click.command()
@dataset_options
@click.option("--checkpoint", type=CHECKPOINT, required=True, help="Trained classifier.")
@click.option("--out", type=FILE, required=True, help="Folder of the shards.")
@click.option(
    "--stage",
    default="final",
    show_default=True,
    help="Stages of the refinement, separated by commas, into one shard set.",
)
@cam_options
@device_option
@network_options
@filling_options
@recipe_option("cams")
@json_option
@config_option
@click.pass_context
def export_cams(
    ctx: click.Context,
    /,
    data: Data,
    checkpoint: Path,
    out: Path,
    stage: str,
    device: str,
    predict_above: float,
    batch_size: int | None,
    decode_workers: int | None,
    shard_size: int,
    filling: "BeginFilling",
    recipe: str | None,
    json_path: str | None,
    **method: Any,
) -> None:
    """Compute the CAMs of every image of a data set and store them as HDF5 shards.

    The image-level labels of the data set choose the classes of each image; with --labels predicted
    the classifier does. Images that cannot be read are listed and skipped (exit code 3); running
    the same command again continues. Several workers may share one --out: start each with its
    --worker, or all by torchrun.

    \b
    Example:
      wsssfast export-cams --dataset voc --data-root VOCdevkit/VOC2012 \\
          --checkpoint classifier.safetensors --out cams
      torchrun --nproc-per-node 8 -m wsssfast export-cams --dataset coco \\
          --data-root coco --checkpoint classifier.safetensors --out cams
    """  # fmt: skip
    from wsssfast.cam_options import CamOptions
    from wsssfast.export import export_cams as export
    from wsssfast.models.checkpoint import load_model
    from wsssfast.training.workers import own_device

    if not data.predicted:
        refuse(ctx, ["predict_above"], "--labels predicted")
    stages = tuple(parts_of(stage))
    options = CamOptions(
        stages=stages, predict_above=predict_above if data.predicted else None, **method
    )
    model = load_model(checkpoint)
    dataset = data.open_for(model.config.class_names)
    model.to(own_device(pick_device(device)))
    with filling("export-cams") as how:
        summary = export(
            model, dataset, out, options, shard_size=shard_size, batch_size=batch_size,
            decode_workers=decode_workers or own_cores(), filling=how,
        )  # fmt: skip
    write_json(asdict(summary), json_path)
    if json_path != "-":
        click.echo(f"{counted(summary.images, 'image')} in {out}: {shards_told(summary)}")
        source = f"its image-level labels ({dataset.label_source})"
        if data.predicted:
            source = f"what the classifier gives a score above {predict_above:g}"
        click.echo(f"Classes of each image: {source}.")
    finish(summary.failed)
