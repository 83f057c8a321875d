"""Options that several commands share, and how results and progress are printed."""

import json
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from wsssfast.errors import SOME_UNREADABLE, WsssError

F = TypeVar("F", bound=Callable[..., Any])
FILE = click.Path(path_type=Path)


def dataset_options(command: F) -> F:
    """--dataset, --data-root, --split and --labels."""
    for option in reversed((
        click.option("--dataset", "kind", type=click.Choice(["voc", "coco", "folder", "synthetic"]),
                     default="synthetic", show_default=True, help="What layout the data has."),
        click.option("--data-root", "root", type=FILE, help="Folder of the data set."),
        click.option("--split", help="Which part: a name of the data set's, or a list file."),
        click.option("--labels", type=FILE, help="Image labels: a .json, .csv or .npy file."),
    )):  # fmt: skip
        command = option(command)
    return command


def config_option(command: F) -> F:
    """--config FILE.toml: values for this command's other options; flags win over the file."""

    def apply(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
        if path is None:
            return
        try:
            with path.open("rb") as file:
                found = tomllib.load(file)
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise WsssError(f"Expected a TOML file at {path}: {error}") from error
        known = {
            flag.lstrip("-"): parameter.name
            for parameter in ctx.command.params
            for flag in parameter.opts
            if flag.startswith("--") and parameter.name not in ("config", "help")
        }
        unknown = sorted(set(found) - set(known))
        if unknown:
            raise WsssError(
                f"Unknown key {unknown[0]!r} in {path}.",
                f"Expected the names of options: {', '.join(sorted(known))}.",
            )
        defaults = {
            known[key]: ",".join(map(str, value)) if isinstance(value, list) else value
            for key, value in found.items()
        }
        ctx.default_map = {**(ctx.default_map or {}), **defaults}

    option: F = click.option(
        "--config", type=FILE, is_eager=True, expose_value=False, callback=apply,
        help="TOML file of option values; flags win over it.",
    )(command)  # fmt: skip
    return option


json_option = click.option(
    "--json", "json_path", metavar="FILE", help="Write the numbers as JSON; - is stdout."
)
device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
    help="Where the network runs.",
)  # fmt: skip


def pick_device(device: str) -> str:
    """`auto` resolved; `cuda` refused in one line where there is none."""
    import torch

    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise WsssError("Expected a CUDA device, found none.", "Use --device cpu.")
    return "cuda" if device != "cpu" and available else "cpu"


def write_json(value: Any, path: str | None) -> None:
    """Write a result as JSON to a file, to stdout (`-`), or nowhere (None)."""
    if path is None:
        return
    text = json.dumps(value, indent=1)
    if path == "-":
        click.echo(text)
        return
    try:
        Path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise WsssError(f"Expected to write {path}: {error.strerror}.") from error


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; yields the function that advances it."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(file=sys.stderr)
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda amount: bar.advance(task, amount)


def table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Print a table to stdout; columns after the first are numbers."""
    from rich.console import Console
    from rich.table import Table

    grid = Table(title=title, title_justify="left")
    for position, name in enumerate(header):
        grid.add_column(name, justify="left" if position == 0 else "right", no_wrap=True)
    for row in rows:
        grid.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160, markup=False).print(grid)


def finish(failed: dict[str, str]) -> None:
    """List the inputs that could not be read, and exit with 3 if there were any."""
    if not failed:
        return
    for image_id, reason in list(failed.items())[:20]:
        click.echo(f"unreadable: {image_id}: {reason}", err=True)
    if len(failed) > 20:
        click.echo(f"… and {len(failed) - 20} more (all are in the shards' sidecars)", err=True)
    click.echo(f"{len(failed)} inputs could not be read; the rest is done.", err=True)
    sys.exit(SOME_UNREADABLE)
