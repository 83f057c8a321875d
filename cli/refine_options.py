"""How masks are made of scores: background, random walk and CRF, for every command that does."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from wsssfast.cli.cam_options import numbers
from wsssfast.errors import WsssError

if TYPE_CHECKING:
    from wsssfast.kernels import Pairwise

F = TypeVar("F", bound=Callable[..., Any])
CRF = ("gaussian_sxy", "gaussian_compat", "bilateral_sxy", "bilateral_srgb", "bilateral_compat",
       "iterations")  # fmt: skip
WALK = ("affinity", "walk_beta", "walk_steps")


def _list(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[float, ...]:
    return () if text is None else numbers(ctx, param, text)


def background_options(command: F) -> F:
    """--background and --background-exponent."""
    for option in reversed((
        click.option("--background", metavar="T|LOW,HIGH", callback=_list,
                     help="Score at or below which a pixel is background; of two, what lies "
                     "between is ignored."),
        click.option("--background-exponent", metavar="A|LOW,HIGH", callback=_list,
                     help="The background's score is (1 - the largest score)^A; of two, what they "
                     "do not agree on is ignored."),
    )):  # fmt: skip
        command = option(command)
    return command


def walk_options(command: F) -> F:
    """What scores walk over, and the constants of the walk (wsssfast.labels.options.Walk)."""
    for option in reversed((
        click.option("--affinity", metavar="FILE|vit",
                     help="What scores walk over: a checkpoint of train-affinity, or the own "
                     "attention of the classifier of --checkpoint, which takes no training."),
        click.option("--walk-beta", default=8.0, show_default=True,
                     help="Walk: exponent of affinities."),
        click.option("--walk-steps", default=64, show_default=True,
                     help="Steps of the walk (PSA's 2^logt)."),
    )):  # fmt: skip
        command = option(command)
    return command


def crf_constants(
    gaussian_sxy: float = 3, bilateral_sxy: float = 80, bilateral_srgb: float = 13,
    bilateral_compat: float = 10,
) -> Callable[[F], F]:  # fmt: skip
    """The constants of the CRF (wsssfast.kernels.Pairwise), by default those of labels.

    Args:
        gaussian_sxy: default of the option, as are all that follow.
        bilateral_sxy: likewise.
        bilateral_srgb: likewise.
        bilateral_compat: likewise.
    """

    def decorate(command: F) -> F:
        for option in reversed((
            click.option("--gaussian-sxy", default=float(gaussian_sxy), show_default=True,
                         help="CRF: width in pixels of the kernel over positions."),
            click.option("--gaussian-compat", default=3.0, show_default=True, help="Its weight."),
            click.option("--bilateral-sxy", default=float(bilateral_sxy), show_default=True,
                         help="CRF: width in pixels of the kernel over positions and colours."),
            click.option("--bilateral-srgb", default=float(bilateral_srgb), show_default=True,
                         help="Its width in steps of 8-bit colour."),
            click.option("--bilateral-compat", default=float(bilateral_compat), show_default=True,
                         help="Its weight."),
            click.option("--crf-iterations", "iterations", default=10, show_default=True,
                         help="Rounds of message passing."),
            click.option("--crf-backend", default="auto", show_default=True,
                         type=click.Choice(["auto", "pydensecrf", "torch", "triton"]),
                         help="What computes the CRF; auto takes the fastest that is here."),
        )):  # fmt: skip
            command = option(command)
        return command

    return decorate


def crf_options(command: F) -> F:
    """The CRF of labels: its constants, what it starts from, and its processes."""
    for option in reversed((
        crf_constants(),
        click.option("--certainty", type=float,
                     help="CRF: start from the mask, right with this probability (IRN: 0.7), not "
                     "from the scores."),
        click.option("--crf-workers", type=click.IntRange(1),
                     help="Processes that refine on the CPU.  [default: a worker's share of the "
                     "cores; 1 on a GPU]"),
    )):  # fmt: skip
        command = option(command)
    return command


def pick_crf(values: dict[str, Any]) -> "Pairwise":
    """The constants of the CRF, taken out of the values of options.

    Raises:
        WsssError: a constant out of range.
    """
    from wsssfast.kernels import Pairwise

    try:
        return Pairwise(**{name: values.pop(name) for name in CRF})
    except ValueError as error:
        raise WsssError(f"The CRF's constants: {error}.") from error
