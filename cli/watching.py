"""How a long export shows what it is doing: a bar, lines where there is no terminal, and a log."""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from wsssfast.cli.options import TOLD_EVERY
from wsssfast.cli.paths import writable_file
from wsssfast.pace import Watch

log_option = click.option(
    "--log", metavar="FILE", callback=writable_file,
    help="Append what happens as JSON, an event a line; several workers may share the file.",
)  # fmt: skip


@contextmanager
def watching(title: str, log: str | None) -> Iterator[Watch]:
    """What to call at each event of a run (`wsssfast.pace`)."""
    with ExitStack() as stack:
        terminal = sys.stderr is not None and sys.stderr.isatty()
        watches = {"stderr": stack.enter_context(_bar(title)) if terminal else _lines(title)}
        if log:
            watches[log] = stack.enter_context(_log(Path(log)))

        def watch(event: str, facts: dict[str, Any]) -> None:
            if event == "damaged":
                with suppress(OSError, ValueError):
                    told = f"{facts['shard']} is damaged ({facts['reason']}) and made anew"
                    click.echo(f"{title}: {told}.", err=True)
            for name, tell in tuple(watches.items()):
                try:
                    tell(event, facts)
                except (OSError, ValueError) as error:  # a full disk, a pipe or terminal gone
                    del watches[name]
                    with suppress(OSError, ValueError):
                        click.echo(f"{title}: no more is written to {name}: {error}.", err=True)

        yield watch


def describe(facts: dict[str, Any]) -> str:
    """`4.9 images/s, 3 h 12 min left, waiting: decode 1 %, device 98 %, write 0 %`.

    No speed as long as what is left is unknown, and no waiting where it was not measured.
    """
    parts = []
    if facts["seconds_left"] is not None:
        parts.append(f"{facts['images_per_second']:.3g} images/s")
        minutes, seconds = divmod(round(facts["seconds_left"]), 60)
        hours, minutes = divmod(minutes, 60)
        parts.append(
            f"{hours} h {minutes} min left" if hours else f"{minutes} min {seconds} s left"
        )
    waits = ", ".join(f"{what} {100 * share:.0f} %" for what, share in facts["waiting"].items())
    if any(facts["waiting"].values()):
        parts.append(f"waiting: {waits}")
    if facts["failed"]:
        parts.append(f"{facts['failed']} unreadable")
    return ", ".join(parts)


@contextmanager
def _bar(title: str) -> Iterator[Watch]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(),
               TextColumn("{task.fields[pace]}"))  # fmt: skip
    bar = Progress(*columns, console=Console(file=sys.stderr), transient=True)
    task = bar.add_task(title, total=None, pace="")
    bar.start()
    try:

        def watch(event: str, facts: dict[str, Any]) -> None:
            if event == "images":
                done, total = facts["images"], facts["of"]
                bar.update(task, completed=done, total=total, pace=describe(facts))

        yield watch
    finally:
        with suppress(OSError, ValueError):  # the terminal is gone
            bar.stop()


def _lines(title: str) -> Watch:
    last = time.monotonic()

    def watch(event: str, facts: dict[str, Any]) -> None:
        nonlocal last
        if event == "images" and time.monotonic() - last >= TOLD_EVERY:
            last = time.monotonic()
            done = f"{facts['images']:,} of {facts['of']:,} images"
            told = ", ".join(part for part in (done, describe(facts)) if part)
            click.echo(f"{title}: {told}", err=True)

    return watch


@contextmanager
def _log(path: Path) -> Iterator[Watch]:
    """Whole lines, each in one write at the end of the file, so that writers do not mix."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    who = {"host": socket.gethostname(), "pid": os.getpid()}

    def watch(event: str, facts: dict[str, Any]) -> None:
        if event != "images":
            line = {"event": event, "time": round(time.time(), 3), **who, **facts}
            text = (json.dumps(line) + "\n").encode()
            if os.write(file, text) < len(text):
                raise OSError(f"no room for all of a line in {path}")

    try:
        yield watch
    finally:
        os.close(file)
