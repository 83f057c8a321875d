"""`wsssfast export-labels`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from wsssfast.cli.cam_options import cam_options
from wsssfast.cli.data_options import Data, dataset_options
from wsssfast.cli.filling import filling_options
from wsssfast.cli.network_options import network_options
from wsssfast.cli.options import (
    config_option,
    device_option,
    finish,
    given,
    json_option,
    pick_device,
    recipe_option,
    refuse,
    shards_told,
    write_json,
)
from wsssfast.cli.paths import CAMS, CHECKPOINT, FILE
from wsssfast.cli.refine_options import (
    CRF,
    WALK,
    background_options,
    crf_options,
    pick_crf,
    walk_options,
)
from wsssfast.errors import WsssError, counted
from wsssfast.torchrun import own_cores

_NETWORK = ("predict_above", "batch_size", "decode_workers", "shard_size")

if TYPE_CHECKING:
    from wsssfast.cli.filling import BeginFilling


@click.command()
@click.option("--cams", type=CAMS, help="Folder of the CAM shards.")
@click.option(
    "--checkpoint",
    type=CHECKPOINT,
    help="Trained classifier: go from images to labels and store no CAMs.",
)
@click.option("--out", type=FILE, required=True, help="Folder of the label shards.")
@dataset_options
@click.option(
    "--stage", help="Which stage of the CAMs; of shards the last stored by default, else final."
)
@recipe_option("labels")
@background_options
@click.option(
    "--refine",
    type=click.Choice(["none", "crf", "affinity", "affinity+crf"]),
    default="none",
    show_default=True,
    help="What is done to the scores before; what looks at images needs the data set.",
)
@walk_options
@crf_options
@cam_options
@device_option
@network_options
@filling_options
@json_option
@config_option
@click.pass_context
def export_labels(
    ctx: click.Context,
    /,
    cams: Path | None,
    checkpoint: Path | None,
    out: Path,
    data: Data,
    stage: str | None,
    recipe: str | None,
    background: tuple[float, ...],
    background_exponent: tuple[float, ...],
    refine: Literal["none", "crf", "affinity", "affinity+crf"],
    affinity: str | None,
    walk_beta: float,
    walk_steps: int,
    certainty: float | None,
    crf_backend: Literal["auto", "pydensecrf", "torch", "triton"],
    crf_workers: int | None,
    device: str,
    filling: "BeginFilling",
    json_path: str | None,
    **others: Any,
) -> None:
    """Make pseudo-labels and store them as label shards.

    Each pixel gets the image's class of the largest score, or background; of two background
    settings, what they do not agree on is ignored (255). Before, scores may walk over affinities
    and a dense CRF may refine them. From CAM shards, or with --checkpoint from images. Images
    without CAM or that cannot be read are listed (exit code 3); running the same command again
    continues, and several workers may share one --out.

    \b
    Example:
      wsssfast export-labels --cams cams --background 0.45 --out labels
      wsssfast export-labels --cams cams --dataset voc --data-root VOCdevkit/VOC2012 \\
          --recipe mctformer-a12 --out labels
      wsssfast export-labels --cams cams --dataset voc --data-root VOCdevkit/VOC2012 \\
          --refine affinity --affinity affinity/last.safetensors --background 0.4 --out labels
    """  # fmt: skip
    if (cams is None) == (checkpoint is None):
        raise WsssError(
            "Expected --cams or --checkpoint, found " + ("both." if cams else "neither."),
            "Give the folder of CAM shards, or the classifier that makes them.",
        )
    from wsssfast.labels.options import VIT, LabelOptions
    from wsssfast.labels.walk import walk_by
    from wsssfast.training.workers import own_device

    crf = pick_crf(others)
    if not refine.endswith("crf"):
        refuse(ctx, [*CRF, "certainty", "crf_backend"], "--refine crf or affinity+crf")
    if not refine.startswith("affinity"):
        refuse(ctx, [*WALK], "--refine affinity or affinity+crf")
        affinity = None
    if refine == "none":
        refuse(ctx, ["crf_workers"], "--refine")
    if not data.predicted:
        refuse(ctx, ["predict_above"], "--labels predicted")
    network = Path(affinity) if affinity and affinity != VIT else None
    looks = refine.endswith("crf") or (refine == "affinity" and affinity != VIT)
    if cams:
        refuse(ctx, [*others], "--checkpoint, which computes CAMs")
        if not looks:
            refuse(ctx, ["split", "labels"], "--refine crf or an AffinityNet")
    if background and background_exponent:  # a flag wins over the recipe's other one
        if given(ctx, "background") and not given(ctx, "background_exponent"):
            background_exponent = ()
        elif given(ctx, "background_exponent") and not given(ctx, "background"):
            background = ()
    place = "cpu" if cams and refine == "none" else own_device(pick_device(device))
    on_gpu = place != "cpu" and crf_backend != "pydensecrf"
    made: dict[str, Any] = {
        "backend": crf_backend, "network": network,
        "crf_workers": crf_workers or (1 if refine == "none" or on_gpu else own_cores()),
    }  # fmt: skip
    missing: list[str] = []

    def options(stage: str, class_names: tuple[str, ...]) -> LabelOptions:
        walk = walk_by(affinity, class_names, walk_beta, walk_steps) if affinity else None
        return LabelOptions(
            stage, background, background_exponent, refine, crf, certainty, walk=walk
        )

    with filling("export-labels") as how:
        if cams:
            from wsssfast.labels.run import export_labels as export
            from wsssfast.shards import CamShards

            shards = CamShards(cams)
            stage = stage or shards.stages[-1]
            dataset = (
                data.open_for(shards.class_names)
                if looks else None
            )  # fmt: skip
            missing = shards.missing_names
            summary = export(
                shards, out, options(stage, shards.class_names), dataset, device=place,
                filling=how, **made,
            )  # fmt: skip
        else:
            from wsssfast.cam_options import CamOptions
            from wsssfast.labels.run import export_labels_of_images
            from wsssfast.models.checkpoint import load_model

            assert checkpoint
            run = {name: others.pop(name) for name in _NETWORK}
            above = run.pop("predict_above")
            run["decode_workers"] = run["decode_workers"] or own_cores()
            stage = stage or "final"
            computed = CamOptions(
                stages=(stage,), predict_above=above if data.predicted else None, **others
            )
            model = load_model(checkpoint)
            dataset = data.open_for(model.config.class_names)
            summary = export_labels_of_images(
                model.to(place), dataset, out, computed, options(stage, dataset.class_names),
                filling=how, **run, **made,
            )  # fmt: skip
    write_json({**asdict(summary), "missing_shards": missing}, json_path)
    if json_path != "-":
        masks = counted(summary.images, "mask")
        click.echo(f"{masks} in {out} from the stage {stage}: {shards_told(summary)}")
    finish(summary.failed, missing, cams, "Run export-cams again, then this command.")
