"""What every training command shows while it runs and when it is done."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from wsssfast.training.options import RunOptions, Schedule

if TYPE_CHECKING:
    from wsssfast.data.dataset import Dataset
    from wsssfast.training.fit import Report
    from wsssfast.training.state import Progress


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
def progress(title: str, shown: bool) -> Iterator[Callable[["Report"], None]]:
    """A bar where stderr is a terminal, a line a minute where not, and a line for each epoch."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(file=sys.stderr, markup=False, highlight=False)
    columns = (
        TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}")
    )  # fmt: skip
    last = time.monotonic()
    with Progress(
        *columns, console=console, transient=True, disable=not (shown and sys.stderr.isatty())
    ) as bar:
        task = bar.add_task(title, total=None, text="")

        def report(told: "Report") -> None:
            nonlocal last
            text = (
                f"loss {told.loss:.4f}, {told.images_per_second:.1f} images/s, "
                f"{100 * told.waiting:.0f} % waiting for images, {_span(told.seconds_left)} left"
            )
            bar.update(task, completed=told.step, total=told.steps, text=text)
            if told.scores is not None:
                means = {k: v for k, v in told.scores.items() if isinstance(v, float)}
                scores = "".join(f", {key} {100 * value:.2f} %" for key, value in means.items())
                console.print(f"epoch {told.epoch}: {text}{scores}", soft_wrap=True)
            elif bar.disable and time.monotonic() - last > 60:
                console.print(f"step {told.step} of {told.steps}: {text}", soft_wrap=True)
            else:
                return
            last = time.monotonic()

        yield report


def _span(seconds: float) -> str:
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
