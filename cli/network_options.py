"""How a classifier is run over a data set: options of every command that goes from images."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from wsssfast.errors import WsssError

F = TypeVar("F", bound=Callable[..., Any])


def _batch_size(ctx: click.Context, param: click.Parameter, text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise WsssError(f"Expected a batch size of at least 1, or auto, found {text[:40]!r}.")
    return int(text)


def network_options(command: F) -> F:
    """--predict-above, --batch-size, --decode-workers and --shard-size."""
    option = click.option(
        "--predict-above", default=0.5, show_default=True,
        help="With --labels predicted: the classifier's score above which a class is present.",
    )  # fmt: skip
    return option(pace_options(command))


def pace_options(command: F) -> F:
    """--batch-size, --decode-workers and --shard-size."""
    for option in reversed((
        click.option("--batch-size", metavar="N|auto", default="auto", show_default=True,
                     callback=_batch_size,
                     help="Most images a forward pass; auto takes what is fast and fits."),
        click.option("--decode-workers", type=click.IntRange(1),
                     help="Threads that decode images.  [default: a worker's share of the cores, "
                     "at most 16]"),
        click.option("--shard-size", default=512, show_default=True, help="Images a shard."),
    )):  # fmt: skip
        command = option(command)
    return command
