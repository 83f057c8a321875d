"""How a classifier is run over a data set: options of every command that goes from images."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from wsssfast.errors import WsssError

if TYPE_CHECKING:
    from wsssfast.data.dataset import Dataset

F = TypeVar("F", bound=Callable[..., Any])
_PREDICTED, _NONE = Path("predicted"), Path("none")  # in place of a labels file


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


def predicted(labels: Path | None) -> bool:
    """Whether --labels asks for the classes that the classifier sees."""
    return labels == _PREDICTED


def given_labels(labels: Path | None) -> Path | None:
    """A file of --labels; None where it is a word instead."""
    return None if labels in (_NONE, _PREDICTED) else labels


def open_images(
    kind: str, root: Path | None, split: str | None, labels: Path | None, classes: tuple[str, ...]
) -> "Dataset":
    """The data set where image labels are not used; --labels none or predicted needs none."""
    return open_data(kind, root, split, _PREDICTED if labels == _NONE else labels, classes)


def open_data(
    kind: str, root: Path | None, split: str | None, labels: Path | None, classes: tuple[str, ...]
) -> "Dataset":
    """The data set of the options; of such `classes` where its labels are predicted."""
    from wsssfast.data import open_dataset
    from wsssfast.data.unlabelled import open_unlabelled

    if predicted(labels):
        return open_unlabelled(kind, root, split, classes)
    return open_dataset(kind, root, split, labels)
