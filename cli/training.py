"""What every training command shows while it runs and when it is done."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from wsssfast.cli.fields import field_options
from wsssfast.cli.options import (
    config_option,
    device_option,
    json_option,
    recipe_option,
    resume_options,
    table,
    write_json,
)
from wsssfast.errors import counted
from wsssfast.training.options import RunOptions, Schedule

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

    from wsssfast.data.dataset import Dataset
    from wsssfast.training.fit import Report
    from wsssfast.training.state import Progress

_FEW = 100  # steps that no network learns in

F = TypeVar("F", bound=Callable[..., Any])


def training_options(schedule: type[Schedule], recipes: str) -> Callable[[F], F]:
    """What every training command takes: its schedule, how to carry it out, recipes of a kind."""

    def decorate(command: F) -> F:
        for option in (
            config_option, json_option, recipe_option(recipes), resume_options, device_option,
            field_options(RunOptions), field_options(schedule),
        ):  # fmt: skip
            command = option(command)
        return command

    return decorate


def settings_of(dataset: "Dataset") -> dict[str, Any]:
    """The command's options as they came out, for the run's folder."""
    found = click.get_current_context().params
    return {**found, "dataset": dataset.name, "split": dataset.split}


@contextmanager
def progress(title: str, shown: bool) -> Iterator["_Shown"]:
    """A bar where stderr is a terminal, a line a minute where not, and a line for each epoch."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(file=sys.stderr, markup=False, highlight=False)
    columns = (
        TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}")
    )  # fmt: skip
    quiet = not (shown and sys.stderr.isatty())
    bar = Progress(*columns, console=console, transient=True, disable=quiet)
    with nullcontext() if quiet else bar:  # ending one that is not shown prints an empty line
        yield _Shown(title, console, bar)


class _Shown:
    """Called with every report of `fit`, a `Listener`."""

    def __init__(self, title: str, console: "Console", bar: "Bar") -> None:
        self._title, self._console, self._bar = title, console, bar
        self._task = bar.add_task(title, total=None, text="")
        self._last = time.monotonic()

    def begin(self, images: int, options: Schedule, step: int, steps: int) -> None:
        """What is trained on and for how long; whether that is too short."""
        held_out, in_all = _held_out(), f"{counted(steps, 'step')} in all"
        text = ", ".join((
            counted(images, "image"), *([f"{held_out:,} held out"] if held_out else []),
            f"batch size {options.batch_size}",
            f"{counted(steps // options.epochs, 'step')} an epoch",
            counted(options.epochs, "epoch"), in_all,
        ))  # fmt: skip
        if step == steps:
            text += "; already complete, nothing is trained again"
        elif step:
            text += f"; continuing after step {step:,} of {steps:,}"
        self._line(f"{self._title}: {text}")
        if steps < _FEW and step < steps:
            remedy = "give more --epochs or a smaller --batch-size."
            self._line(f"Only {in_all}: too few to learn from; {remedy}")

    def __call__(self, told: "Report") -> None:
        """How far it is."""
        text = (
            f"loss {told.loss:.4f}, {told.images_per_second:.1f} images/s, "
            f"{100 * told.waiting:.0f} % waiting for images, {_span(told.seconds_left)} left"
        )
        self._bar.update(self._task, completed=told.step, total=told.steps, text=text)
        if told.scores is not None:
            means = {k: v for k, v in told.scores.items() if isinstance(v, float)}
            scores = "".join(f", {key} {100 * value:.2f} %" for key, value in means.items())
            self._line(f"epoch {told.epoch}: {text}{scores}")
        elif self._bar.disable and time.monotonic() - self._last > 60:
            self._line(f"step {told.step} of {told.steps}: {text}")

    def _line(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)
        self._last = time.monotonic()


def _held_out() -> int:
    """How many images the folder of the command's run lists as held out."""
    from wsssfast.training.folder import LISTS

    path = Path(click.get_current_context().params["out"]) / LISTS[1]
    return len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0


def _span(seconds: float) -> str:
    """`45 s`, `12 min`, `3:05 h`."""
    if round(seconds) < 120:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h" if minutes >= 60 else f"{minutes} min"


_PER_CLASS = {"AP": "Average precision", "per_class": "IoU"}  # among the scores of an epoch


def tell(out: Path, done: "Progress", json_path: str | None) -> None:
    """The scores of each epoch, and where the checkpoints are."""
    from wsssfast.training.logs import read_log

    epochs = [row for row in read_log(out) if "scores" in row]
    result = {
        "steps": done.step,
        "seconds": done.seconds,
        "epochs": epochs,
        "best_epoch": done.best[1] if done.best else None,
        "checkpoint": str(out / "last.safetensors"),
        "unreadable": done.failed,
    }
    write_json(result, json_path)
    if json_path == "-":
        return
    if epochs:
        scores = epochs[-1]["scores"]
        means = [key for key, value in scores.items() if isinstance(value, float)]
        rows = [
            [str(row["epoch"]), *(f"{100 * row['scores'][key]:.2f}" for key in means)]
            for row in epochs
        ]
        table("On the held-out images", ["epoch", *(f"{key} %" for key in means)], rows)
        for key in _PER_CLASS.keys() & scores.keys():
            rows = [[name, f"{100 * value:.2f}"] for name, value in scores[key].items()]
            table(f"{_PER_CLASS[key]} after the last epoch", ["class", "%"], rows)
    click.echo(f"Trained for {_span(done.seconds)}; the checkpoint is {out / 'last.safetensors'}")
    if done.best:
        click.echo(f"Best on these after epoch {done.best[1]}: {out / 'best.safetensors'}")
