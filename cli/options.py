"""Options that several commands share, and how results and progress are printed."""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from wsssfast.cli.paths import FILE, writable_file
from wsssfast.errors import SOME_UNREADABLE, WsssError, counted, listing
from wsssfast.parse import toml_of
from wsssfast.torchrun import torchrun_worker

if TYPE_CHECKING:
    from rich.progress import Progress

    from wsssfast.shards.resume import ExportSummary

F = TypeVar("F", bound=Callable[..., Any])
TOLD_EVERY = 30.0  # seconds between lines where stderr is no terminal


_LISTS = (  # options of text with commas, which a TOML file may give as a list
    "scales", "stage", "stages", "propagations", "rankings", "ratios", "alphas", "c2p_ranges",
    "p2p_ranges", "background", "background_exponent", "what",
    "sizes", "batches", "precisions", "batch_size",
)  # fmt: skip


def _config_value(path: Path, key: str, value: Any, parameter: click.Parameter) -> Any:
    """A TOML value as the option takes it, refused where its type is another."""
    if parameter.multiple and isinstance(value, list):
        return [_config_value(path, key, one, parameter) for one in value]
    if parameter.name in _LISTS and isinstance(value, (list, int, float)):
        return ",".join(map(str, value if isinstance(value, list) else [value]))
    wanted: type | tuple[type, ...] = str
    if isinstance(parameter, click.Option) and parameter.is_flag:
        wanted = bool
    elif isinstance(parameter.type, click.types.IntParamType):
        wanted = int
    elif isinstance(parameter.type, click.types.FloatParamType):
        wanted = (int, float)
    if not isinstance(value, wanted) or isinstance(value, bool) is not (wanted is bool):
        name = "a number" if isinstance(wanted, tuple) else f"of type {wanted.__name__}"
        raise WsssError(f"Expected {key} in {path} to be {name}, found {str(value)[:40]!r}.")
    return value


def _read_values(ctx: click.Context, path: Path) -> dict[str, Any]:
    """Values of a TOML file by parameter name, each checked against its option."""
    try:
        found = toml_of(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise WsssError(f"Expected a TOML file at {path}: {error.strerror}.") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise WsssError(f"Expected a TOML file at {path}: {error}") from error
    sections = [name for name, value in found.items() if isinstance(value, dict)]
    if sections:
        raise WsssError(
            f"Expected lines of option = value in {path}, found the section [{sections[0][:40]}].",
            "Leave its line out: a file is for one command.",
        )
    known = {
        flag.lstrip("-"): parameter
        for parameter in ctx.command.params
        for flag in parameter.opts
        if flag.startswith("--") and parameter.name not in ("config", "recipe", "help")
    }
    unknown = sorted(set(found) - set(known))
    if unknown:
        near = get_close_matches(unknown[0], known, 1) or sorted(known)
        raise WsssError(
            f"Unknown key {unknown[0]!r} in {path}.",
            f"Expected the names of options: {listing(near, 60)}.",
        )
    return {
        str(known[key].name): _config_value(path, key, value, known[key])
        for key, value in found.items()
    }


def config_option(command: F) -> F:
    """--config FILE.toml: values for this command's other options; flags win over the file."""

    def apply(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
        if path is not None:
            ctx.default_map = {**(ctx.default_map or {}), **_read_values(ctx, path)}

    option: F = click.option(
        "--config", type=FILE, is_eager=True, expose_value=False, callback=apply,
        help="TOML file of option values; flags win over it.",
    )(command)  # fmt: skip
    return option


def recipe_option(kind: str) -> Callable[[F], F]:
    """--recipe NAME: a shipped file of option values; --config and flags win over it.

    Args:
        kind: recipes of which command, the folder's name in `wsssfast/recipes`.
    """
    folder = Path(str(resources.files("wsssfast.recipes"))) / kind
    names = sorted(path.stem for path in folder.glob("*.toml"))

    def apply(ctx: click.Context, param: click.Parameter, name: str | None) -> str | None:
        if name is not None:
            values = _read_values(ctx, folder / f"{name}.toml")
            ctx.default_map = {**values, **(ctx.default_map or {})}
        return name

    def decorate(command: F) -> F:
        option: F = click.option(
            "--recipe", type=click.Choice(names), is_eager=True, callback=apply,
            help="Shipped option values; --config and flags win over them.",
        )(command)  # fmt: skip
        return option

    return decorate


json_option = click.option(
    "--json", "json_path", metavar="FILE", callback=writable_file,
    help="Write the numbers as JSON; - is stdout.",
)  # fmt: skip


def resume_options(command: F) -> F:
    """--resume/--no-resume and --overwrite of what is written into --out."""
    for option in reversed((
        click.option("--resume/--no-resume", default=True, show_default=True,
                     help="Continue a folder of the same configuration, or refuse one that is not "
                     "empty."),
        click.option("--overwrite", is_flag=True, help="Discard what is in --out first."),
    )):  # fmt: skip
        command = option(command)
    return command


device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
    help="Where the network runs.",
)  # fmt: skip


def given(ctx: click.Context, name: str) -> bool:
    """Whether an option is on the command line."""
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE


def refuse(ctx: click.Context, names: Sequence[str], need: str = "", *, against: str = "") -> None:
    """Refuse options on the command line that would mean nothing here.

    Args:
        ctx: of the command.
        names: of their parameters.
        need: what is missing that they go together with.
        against: or what is there that they do not go together with.
    """
    spelled = {option.name: option.opts[0] for option in ctx.command.params}
    found = listing([spelled[name] for name in names if given(ctx, name)])
    if found and against:
        raise WsssError(f"Expected {found} without {against}, found both.", "Leave one out.")
    if found:
        raise WsssError(
            f"Expected {found} together with {need}, found it without.",
            "Add that, or leave it out.",
        )


def pick_device(device: str) -> str:
    """`auto` resolved; `cuda` refused in one line where there is none."""
    import torch

    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise WsssError("Expected a CUDA device, found none.", "Use --device cpu.")
    return "cuda" if device != "cpu" and available else "cpu"


def _worker(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[int, int]:
    """(i, n) of --worker, else of torchrun, else (0, 1)."""
    if text is None:
        return torchrun_worker()
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not found or not int(found[1]) < int(found[2]):
        raise WsssError(
            f"Expected a worker I/N with 0 <= I < N, found {text[:40]!r}.",
            "Such as --worker 0/4, --worker 1/4 and so on.",
        )
    return int(found[1]), int(found[2])


worker_option = click.option(
    "--worker", callback=_worker, metavar="I/N",
    help="This is worker I of N, from 0, that share --out.  [default: as torchrun says, or 0/1]",
)  # fmt: skip


def write_json(value: Any, path: str | None) -> None:
    """Write a result as JSON to a file, to stdout (`-`), or nowhere (None)."""
    if path is None:
        return
    text = json.dumps(value, indent=1)
    if path == "-":
        click.echo(text)
        return
    try:
        Path(path).write_text(text + "\n", encoding="utf-8")  # it may be a device
    except OSError as error:
        raise WsssError(f"Expected to write {path}: {error.strerror}.") from error


class Advance:
    """Shows how far a command is; called with how much more of it is done.

    Args:
        title: of the command.
        total: what there is to do.
        bar: that shows it; one that is disabled gives way to lines.
    """

    def __init__(self, title: str, total: int, bar: "Progress") -> None:
        self._title, self._total, self._bar, self._done = title, total, bar, 0
        self._task = bar.add_task(title, total=total)
        self._last = time.monotonic()

    def __call__(self, amount: int) -> None:
        """So much more is done."""
        self._done += amount
        self._bar.advance(self._task, amount)
        if time.monotonic() - self._last >= TOLD_EVERY:
            self._last = time.monotonic()
            self._line(f"{self._done:,} of {self._total:,}")

    def begin(self, part: str) -> None:
        """A part that takes long, and counts as one, begins."""
        self._last = float("inf")  # from now on a line a part says enough
        self._bar.update(self._task, description=f"{self._title}: {part}")
        self._line(f"{part} ({self._done + 1} of {self._total}) …")

    def _line(self, text: str) -> None:
        if self._bar.disable:
            with suppress(OSError, ValueError):  # nobody reads it any more
                click.echo(f"{self._title}: {text}", err=True)


@contextmanager
def progress(title: str, total: int) -> Iterator[Advance]:
    """A bar on stderr, a line now and then where it is no terminal; yields what advances it."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(file=sys.stderr)
    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    quiet = sys.stderr is None or not sys.stderr.isatty()
    bar = Progress(*columns, console=console, transient=True, disable=quiet)
    with nullcontext() if quiet else bar:  # ending one that is not shown prints an empty line
        yield Advance(title, total, bar)


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


def shards_told(summary: "ExportSummary") -> str:
    """What was done, and whether all is there.

    `3 shards written, 2 were done, all 5 are there; 1.20 MB, 240 bytes an image.`
    """
    done, others = summary.skipped_shards, summary.others_shards
    total = summary.written_shards + done
    whole = "the only one is there" if total == 1 else f"all {total:,} are there"
    if others:
        whole = (
            f"{others:,} {'was' if others == 1 else 'were'} in the hands of other workers: all are "
            "there once these have ended"
        )
    return (
        f"{counted(summary.written_shards, 'shard')} written, {done:,} "
        f"{'was' if done == 1 else 'were'} done, {whole}; {summary.bytes / 1e6:.2f} MB, "
        f"{summary.bytes / max(1, summary.images):.0f} bytes an image."
    )


def finish(
    failed: dict[str, str], missing: Sequence[str] = (), source: Path | None = None,
    remedy: str = "",
) -> None:  # fmt: skip
    """List the inputs that could not be read, and exit with 3 if there were any.

    Those beyond the first 20 are left to the JSON of a command that writes one.

    Args:
        failed: id -> reason.
        missing: names of shards that were to be read and are not there.
        source: where.
        remedy: what to do about it.
    """
    if missing:
        told = f"Left out, as they are missing in {source}: {listing(list(missing))}. {remedy}"
        click.echo(told.strip(), err=True)
    if not failed:
        if missing:
            sys.exit(SOME_UNREADABLE)
        return
    options = click.get_current_context().params
    shown = list(failed.items())[: 20 if "json_path" in options else None]
    for image_id, reason in shown:
        click.echo(f"unreadable: {image_id}: {reason}", err=True)
    if len(failed) > len(shown):
        where = "all are in the JSON" if options["json_path"] else "--json FILE lists all"
        click.echo(f"… and {len(failed) - len(shown)} more ({where})", err=True)
    click.echo(f"{counted(len(failed), 'input')} could not be read; the rest is done.", err=True)
    sys.exit(SOME_UNREADABLE)
