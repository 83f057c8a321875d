"""`wsssfast ablate`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from wsssfast.cli.cam_options import cam_options, numbers
from wsssfast.cli.data_options import Data, dataset_options
from wsssfast.cli.filling import filling_options
from wsssfast.cli.network_options import pace_options
from wsssfast.cli.options import (
    config_option,
    device_option,
    finish,
    given,
    json_option,
    pick_device,
    shards_told,
    table,
    write_json,
)
from wsssfast.cli.paths import CHECKPOINT, FILE, writable_page
from wsssfast.errors import WsssError
from wsssfast.parse import parts_of
from wsssfast.torchrun import own_cores

if TYPE_CHECKING:
    from wsssfast.ablation import Ablation
    from wsssfast.cli.filling import BeginFilling

F = TypeVar("F", bound=Callable[..., Any])
_STAGES = "original,original+p2p,original+c2p,original+c2p+p2p,modulated,final"


def _words(*known: str) -> Callable[[click.Context, click.Parameter, str], tuple[str, ...]]:
    """Callback of options that take some of several words, separated by commas."""

    def split(ctx: click.Context, param: click.Parameter, text: str) -> tuple[str, ...]:
        found = tuple(parts_of(text))
        if not found or not set(found) <= set(known):
            raise WsssError(f"Expected {param.opts[0]} out of {', '.join(known)}, found {text!r}.")
        return found

    return split


def _counts(ctx: click.Context, param: click.Parameter, text: str) -> tuple[int, ...]:
    """Callback of options that take numbers of layers."""
    found = numbers(ctx, param, text) if text.strip() else ()
    if not all(layers >= 1 and layers.is_integer() for layers in found):
        raise WsssError(f"Expected whole numbers of layers for {param.opts[0]}, found {text!r}.")
    return tuple(int(layers) for layers in found)


def _values(ctx: click.Context, param: click.Parameter, text: str) -> tuple[float, ...]:
    """Callback of options that take numbers, or none at all."""
    return numbers(ctx, param, text) if text.strip() else ()


def _sets(ctx: click.Context, param: click.Parameter, text: str) -> tuple[tuple[float, ...], ...]:
    """Callback of an option that takes lists of numbers, separated by semicolons."""
    return tuple(numbers(ctx, param, part) for part in text.split(";") if part.strip())


def _variations(command: F) -> F:
    """What is varied."""
    for option in reversed((
        click.option("--stages", default=_STAGES, show_default=True,
                     callback=_words(*_STAGES.split(",")), help="Stages (Tables 4 and 5)."),
        click.option("--propagations", default="gather,scatter,geometric", show_default=True,
                     callback=_words("gather", "scatter", "geometric"),
                     help="Readings of Eq. 6."),
        click.option("--rankings", default="attention,tokens", show_default=True,
                     callback=_words("attention", "tokens"), help="What ranks related patches."),
        click.option("--ratios", default="0.1,0.2,0.3,0.4,0.5", show_default=True,
                     callback=_values, help="Shares of related patches (Fig. 5)."),
        click.option("--alphas", default="0,0.6,0.8,1.0,1.2,1.4,1.6,1.8", show_default=True,
                     callback=_values,
                     help="Weights of the related mean (Table 3); 0 is MCTformer-V2."),
        click.option("--grid", is_flag=True, help="Every ratio with every alpha."),
        click.option("--c2p-ranges", default="1,3", show_default=True, callback=_counts,
                     help="Numbers of last layers of the class-to-patch attention."),
        click.option("--p2p-ranges", default="", callback=_counts,
                     help="Numbers of last layers of the patch-to-patch attention; each takes "
                     "another forward pass."),
        click.option("--scale-sets", default="", callback=_sets,
                     help="Lists of image scales, separated by semicolons."),
    )):  # fmt: skip
        command = option(command)
    return command


@click.command()
@dataset_options
@click.option("--checkpoint", type=CHECKPOINT, required=True, help="Trained classifier.")
@click.option("--out", type=FILE, required=True, help="Folder of the score shards.")
@_variations
@cam_options
@device_option
@pace_options
@filling_options
@click.option("--report", type=FILE, callback=writable_page, help="Write an HTML page of it.")
@json_option
@config_option
def ablate(
    data: Data,
    checkpoint: Path,
    out: Path,
    stages: tuple[str, ...],
    propagations: tuple[Any, ...],
    rankings: tuple[Any, ...],
    ratios: tuple[float, ...],
    alphas: tuple[float, ...],
    grid: bool,
    c2p_ranges: tuple[int, ...],
    p2p_ranges: tuple[int, ...],
    scale_sets: tuple[tuple[float, ...], ...],
    device: str,
    batch_size: int | None,
    decode_workers: int | None,
    shard_size: int,
    filling: "BeginFilling",
    report: Path | None,
    json_path: str | None,
    **method: Any,
) -> None:
    """Score stages, orientations, rankings, ratios, alphas, layers and scales in one pass.

    Stages are combined with orientations and rankings; all else is varied for the last stage, one
    option at a time, with the others as --ratio, --alpha and so on say. Each setting is scored at
    its own best background threshold of 0.00 to 0.59, which is tuned on the masks that it is
    scored against. Only counts are stored: the same command continues, and several workers may
    share one --out.

    \b
    Example:
      wsssfast ablate --dataset voc --data-root VOCdevkit/VOC2012 --split train \\
          --checkpoint classifier.safetensors --out ablation --report ablation.html
    """  # fmt: skip
    from wsssfast.ablation import ablate as score
    from wsssfast.ablation import read_ablation, settings_of
    from wsssfast.cam_options import CamOptions
    from wsssfast.compute import OF_PATCH_HEAD, require_stages
    from wsssfast.models.checkpoint import load_model
    from wsssfast.report.ablation import write_ablation_report
    from wsssfast.training.workers import own_device

    model = load_model(checkpoint)
    if model.head is None and not given(click.get_current_context(), "stages"):
        stages = tuple(stage for stage in stages if stage not in OF_PATCH_HEAD)
    require_stages(model, stages)
    settings = settings_of(
        CamOptions(**method), stages=stages, propagations=propagations, related_by=rankings,
        ratios=ratios, alphas=alphas, c2p_ranges=c2p_ranges, p2p_ranges=p2p_ranges,
        scale_sets=scale_sets, grid=grid,
    )  # fmt: skip
    dataset = data.open()
    model.to(own_device(pick_device(device)))
    with filling("ablate") as how:
        summary = score(
            model, dataset, out, settings, CamOptions(**method), shard_size=shard_size,
            batch_size=batch_size, decode_workers=decode_workers or own_cores(), filling=how,
        )  # fmt: skip
    if summary.others_shards:
        click.echo(f"{shards_told(summary)} The last worker to end tells the scores.")
        finish(summary.failed)
        return
    found = read_ablation(out)
    write_json({**found.to_json(), "dataset": dataset.name, "split": dataset.split}, json_path)
    if report:
        write_ablation_report(report, [found], f"wsssfast: ablation on {dataset.name}, split "
                              f"{dataset.split}")  # fmt: skip
    if json_path != "-":
        _tell(found)
        if report:
            click.echo(f"The page is at {report.resolve()}")
    finish(found.failed)


def _tell(found: "Ablation") -> None:
    from wsssfast.report.ablation import NAMES, rows_of

    table(
        f"{len(found.scores)} settings over {found.images} images",
        [*NAMES.values(), "mIoU %", "threshold"],
        [
            [*row.texts(), f"{row.mean:.2f}", f"{row.thresholds[0]:.2f}"]
            for row in rows_of([found])
        ],
    )  # fmt: skip
    click.echo("The thresholds were tuned on these masks.")
