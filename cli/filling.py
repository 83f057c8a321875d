"""Options of every command that fills a folder of shards, and what they come to."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

from wsssfast.cli.options import F, resume_options, worker_option
from wsssfast.cli.watching import log_option, watching

if TYPE_CHECKING:
    from wsssfast.shards.run import Filling

    BeginFilling = Callable[[str], AbstractContextManager[Filling]]


def filling_options(command: F) -> F:
    """--worker, --resume, --overwrite and --log, which the command gets as one `filling`.

    `with filling(title) as how` shows the progress under that title while `how`, a `Filling`, is
    at work.
    """

    @wraps(command)
    def gathered(*args: Any, **values: Any) -> Any:
        own = {name: values.pop(name) for name in ("worker", "resume", "overwrite", "log")}
        return command(*args, filling=partial(_filling, **own), **values)

    wrapped: Any = worker_option(resume_options(log_option(gathered)))
    decorated: F = wrapped
    return decorated


@contextmanager
def _filling(
    title: str, worker: tuple[int, int], resume: bool, overwrite: bool, log: str | None
) -> "Iterator[Filling]":
    from wsssfast.shards.run import Filling

    with watching(title, log) as watch:
        yield Filling(resume, overwrite, worker, watch)
