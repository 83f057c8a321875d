"""`wsssfast export-labels`."""

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
from click.core import ParameterSource

from wsssfast.cli.cam_options import cam_options, numbers
from wsssfast.cli.network_options import network_options, open_data, predicted
from wsssfast.cli.options import (
    FILE,
    config_option,
    dataset_options,
    device_option,
    finish,
    json_option,
    pick_device,
    recipe_option,
    resume_options,
    shards_told,
    worker_option,
    write_json,
)
from wsssfast.cli.watching import log_option, watching
from wsssfast.errors import SOME_UNREADABLE, WsssError, listing
from wsssfast.torchrun import own_cores

F = TypeVar("F", bound=Callable[..., Any])
_CRF = ("gaussian_sxy", "gaussian_compat", "bilateral_sxy", "bilateral_srgb", "bilateral_compat",
        "iterations")  # fmt: skip
_NETWORK = ("predict_above", "batch_size", "decode_workers", "shard_size")


def _list(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[float, ...]:
    return () if text is None else numbers(ctx, param, text)


def _crf_options(command: F) -> F:
    """The constants of the CRF (wsssfast.kernels.Pairwise), its backend and processes."""
    for option in reversed((
        click.option("--gaussian-sxy", default=3.0, show_default=True,
                     help="CRF: width in pixels of the kernel over positions."),
        click.option("--gaussian-compat", default=3.0, show_default=True, help="Its weight."),
        click.option("--bilateral-sxy", default=80.0, show_default=True,
                     help="CRF: width in pixels of the kernel over positions and colours."),
        click.option("--bilateral-srgb", default=13.0, show_default=True,
                     help="Its width in steps of 8-bit colour."),
        click.option("--bilateral-compat", default=10.0, show_default=True, help="Its weight."),
        click.option("--crf-iterations", "iterations", default=10, show_default=True,
                     help="Rounds of message passing."),
        click.option("--certainty", type=float,
                     help="CRF: start from the mask, right with this probability (IRN: 0.7), not "
                     "from the scores."),
        click.option("--crf-backend", type=click.Choice(["auto", "pydensecrf", "torch", "triton"]),
                     default="auto", show_default=True,
                     help="What computes the CRF; auto takes the fastest that is here."),
        click.option("--crf-workers", type=click.IntRange(1),
                     help="Processes that refine on the CPU.  [default: a worker's share of the "
                     "cores; 1 for a CRF on a GPU]"),
    )):  # fmt: skip
        command = option(command)
    return command


@click.command()
@click.option("--cams", type=FILE, help="Folder of the CAM shards.")
@click.option(
    "--checkpoint",
    type=FILE,
    help="Trained classifier: go from images to labels and store no CAMs.",
)
@click.option("--out", type=FILE, required=True, help="Folder of the label shards.")
@dataset_options
@click.option(
    "--stage", help="Which stage of the CAMs; of shards the last stored by default, else final."
)
@recipe_option("labels")
@click.option(
    "--background",
    metavar="T|LOW,HIGH",
    callback=_list,
    help="Score at or below which a pixel is background; of two, what lies between is ignored.",
)
@click.option(
    "--background-exponent",
    metavar="A|LOW,HIGH",
    callback=_list,
    help="The background's score is (1 - the largest score)^A; of two, what they do not "
    "agree on is ignored.",
)
@click.option(
    "--refine",
    type=click.Choice(["none", "crf"]),
    default="none",
    show_default=True,
    help="What is done to the scores before; crf needs the data set.",
)
@_crf_options
@cam_options
@device_option
@network_options
@worker_option
@resume_options
@log_option
@json_option
@config_option
@click.pass_context
def export_labels(
    ctx: click.Context,
    /,
    cams: Path | None,
    checkpoint: Path | None,
    out: Path,
    kind: str,
    root: Path | None,
    split: str | None,
    labels: Path | None,
    stage: str | None,
    recipe: str | None,
    background: tuple[float, ...],
    background_exponent: tuple[float, ...],
    refine: Literal["none", "crf"],
    certainty: float | None,
    crf_backend: Literal["auto", "pydensecrf", "torch", "triton"],
    crf_workers: int | None,
    device: str,
    worker: tuple[int, int],
    resume: bool,
    overwrite: bool,
    log: str | None,
    json_path: str | None,
    **others: Any,
) -> None:
    """Make pseudo-labels and store them as label shards.

    Each pixel gets the image's class of the largest score, or background; of two background
    settings, what they do not agree on is ignored (255). A dense CRF may refine the scores before.
    From CAM shards, or with --checkpoint from images. Images without CAM or that cannot be read are
    listed (exit code 3); running the same command again continues, and several workers may share
    one --out.

    \b
    Example:
      wsssfast export-labels --cams cams --background 0.45 --out labels
      wsssfast export-labels --cams cams --dataset voc --data-root VOCdevkit/VOC2012 \\
          --recipe mctformer-a12 --out labels
    """  # fmt: skip
    if (cams is None) == (checkpoint is None):
        raise WsssError(
            "Expected --cams or --checkpoint, found " + ("both." if cams else "neither."),
            "Give the folder of CAM shards, or the classifier that makes them.",
        )
    from wsssfast.kernels import Pairwise
    from wsssfast.label_options import LabelOptions
    from wsssfast.training.workers import own_device

    try:
        crf = Pairwise(**{name: others.pop(name) for name in _CRF})
    except ValueError as error:
        raise WsssError(f"The CRF's constants: {error}.") from error
    if refine == "none":
        unused = [*_CRF, "certainty", "crf_backend", "crf_workers"]
        if cams:
            unused += ["kind", "root", "split", "labels"]
        _refuse(ctx, unused, "--refine crf")
    if cams:
        _refuse(ctx, [*others], "--checkpoint, which computes CAMs")
    if background and background_exponent:  # a flag wins over the recipe's other one
        if _given(ctx, "background") and not _given(ctx, "background_exponent"):
            background_exponent = ()
        elif _given(ctx, "background_exponent") and not _given(ctx, "background"):
            background = ()
    place = "cpu" if cams and refine == "none" else own_device(pick_device(device))
    on_gpu = place != "cpu" and crf_backend != "pydensecrf"
    made: dict[str, Any] = {
        "backend": crf_backend, "resume": resume, "overwrite": overwrite, "worker": worker,
        "crf_workers": crf_workers or (1 if refine == "none" or on_gpu else own_cores()),
    }  # fmt: skip
    missing: list[str] = []

    def options(stage: str) -> LabelOptions:
        return LabelOptions(stage, background, background_exponent, refine, crf, certainty)

    with watching("export-labels", log) as watch:
        if cams:
            from wsssfast.labels import export_labels as export
            from wsssfast.shards import CamShards

            shards = CamShards(cams)
            stage = stage or shards.stages[-1]
            dataset = (
                open_data(kind, root, split, labels, shards.class_names)
                if refine == "crf" else None
            )  # fmt: skip
            missing = shards.missing_names
            summary = export(
                shards, out, options(stage), dataset, device=place, watch=watch, **made
            )
        else:
            from wsssfast.cam_options import CamOptions
            from wsssfast.labels import export_labels_of_images
            from wsssfast.models.checkpoint import load_model

            assert checkpoint
            run = {name: others.pop(name) for name in _NETWORK}
            above = run.pop("predict_above")
            run["decode_workers"] = run["decode_workers"] or own_cores()
            stage = stage or "final"
            computed = CamOptions(
                stages=(stage,), predict_above=above if predicted(labels) else None, **others
            )
            model = load_model(checkpoint)
            dataset = open_data(kind, root, split, labels, model.config.class_names)
            summary = export_labels_of_images(
                model.to(place), dataset, out, computed, options(stage), watch=watch, **run, **made
            )
    write_json({**asdict(summary), "missing_shards": missing}, json_path)
    if json_path != "-":
        click.echo(
            f"{summary.images} masks in {out} from the stage {stage}: {shards_told(summary)}"
        )
    if missing:
        click.echo(
            f"Left out, as they are missing in {cams}: {listing(missing)}. Run export-cams again, "
            "then this command.",
            err=True,
        )
    finish(summary.failed)
    if missing:
        sys.exit(SOME_UNREADABLE)


def _given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _refuse(ctx: click.Context, names: list[str], need: str) -> None:
    """Refuse options on the command line that would mean nothing here."""
    spelled = {option.name: option.opts[0] for option in ctx.command.params}
    given = [spelled[name] for name in names if _given(ctx, name)]
    if given:
        raise WsssError(
            f"Expected {listing(given)} together with {need}, found it without.",
            "Add that, or leave it out.",
        )
