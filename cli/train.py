"""`wsssfast train`."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsssfast.cli.fields import field_options, pick_fields
from wsssfast.cli.options import (
    FILE,
    config_option,
    dataset_options,
    device_option,
    finish,
    json_option,
    pick_device,
    recipe_option,
    resume_options,
    table,
    write_json,
)
from wsssfast.errors import WsssError
from wsssfast.training.options import ClassifierOptions, RunOptions

if TYPE_CHECKING:
    from wsssfast.training.fit import Report
    from wsssfast.training.state import Progress


@click.command()
@dataset_options
@click.option("--val-split", help="Split to score after each epoch; its images are not trained on.")
@click.option(
    "--holdout",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Hold out every N-th of the sorted ids instead, from the first; 0: none.",
)
@click.option("--out", type=FILE, required=True, help="Folder of the run.")
@click.option(
    "--arch", default="deit_small_patch16_224", show_default=True, help="A plain ViT of timm."
)
@click.option(
    "--pretrained",
    default="timm",
    show_default=True,
    help="ImageNet weights: a file, `timm` to download them, or `none`.",
)
@click.option("--image-size", default=224, show_default=True, help="Side of the training crops.")
@click.option(
    "--patch-head/--no-patch-head",
    default=True,
    show_default=True,
    help="With the convolution over patch tokens, or without as MCTformer-V1.",
)
@field_options(ClassifierOptions)
@field_options(RunOptions)
@device_option
@resume_options
@recipe_option("train")
@json_option
@config_option
def train(
    kind: str,
    root: Path | None,
    split: str | None,
    labels: Path | None,
    val_split: str | None,
    holdout: int,
    out: Path,
    arch: str,
    pretrained: str,
    image_size: int,
    patch_head: bool,
    device: str,
    resume: bool,
    overwrite: bool,
    recipe: str | None,
    json_path: str | None,
    **fields: Any,
) -> None:
    """Train the classifier on the image-level labels of a data set.

    Leaves last.safetensors (to export CAMs from), best.safetensors (by mAP on what is held out),
    log.jsonl, TensorBoard's files and the state to continue from: interrupted, the same command
    goes on exactly where it stopped. Several GPUs:
    torchrun --nproc-per-node 8 -m wsssfast train …

    \b
    Example:
      wsssfast train --dataset voc --data-root VOCdevkit/VOC2012 --split train_aug \\
          --val-split val --recipe paper-voc --out run
    """  # fmt: skip
    options = ClassifierOptions(**pick_fields(ClassifierOptions, fields))
    run = RunOptions(**pick_fields(RunOptions, fields))
    from wsssfast.data import open_dataset
    from wsssfast.data.dataset import hold_out
    from wsssfast.models.backbone import backbone_weights
    from wsssfast.models.classifier import ClassifierConfig, ClassTokenViT
    from wsssfast.training.classifier import classifier_task
    from wsssfast.training.fit import fit
    from wsssfast.training.folder import open_run
    from wsssfast.training.workers import join_workers

    if val_split and holdout:
        raise WsssError("Expected --val-split or --holdout, found both.", "Leave one out.")
    dataset = open_dataset(kind, root, split, labels)
    held_out = open_dataset(kind, root, val_split, labels) if val_split else None
    if held_out:
        known = held_out.by_id
        dataset = dataset.subset(lambda n, item: item.id not in known, dataset.split)
    if holdout:
        dataset, held_out = hold_out(dataset, holdout)
    config = ClassifierConfig.for_backbone(arch, dataset.class_names, image_size)
    config = replace(config, patch_head=patch_head)
    settings = {
        **click.get_current_context().params,
        "dataset": dataset.name, "split": dataset.split,
    }  # fmt: skip
    with join_workers(pick_device(device)) as workers:
        ClassTokenViT(config)  # refuses what is no backbone before its weights are looked for
        backbone = None if pretrained == "none" else backbone_weights(arch, pretrained)
        _, task = classifier_task(dataset, config, options, workers, backbone, held_out)
        workers.first_does(
            lambda: open_run(out, dataset, held_out, settings, resume=resume, overwrite=overwrite)
        )
        with _progress(workers.first) as report:
            done = fit(task, options, out, run=run, workers=workers, report=report)
        if not workers.first:
            return
    _tell(out, done, json_path)
    finish(done.failed)


@contextmanager
def _progress(shown: bool) -> Iterator[Callable[["Report"], None]]:
    """A bar where stderr is a terminal, a line a minute where not, and a line for each epoch."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(file=sys.stderr, markup=False, highlight=False)
    columns = (
        TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}")
    )  # fmt: skip
    last = time.monotonic()
    with Progress(
        *columns, console=console, transient=True, disable=not (shown and sys.stderr.isatty())
    ) as bar:
        task = bar.add_task("train", total=None, text="")

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


def _tell(out: Path, done: "Progress", json_path: str | None) -> None:
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
        rows = [[name, f"{100 * ap:.2f}"] for name, ap in scores["AP"].items()]
        table("Average precision after the last epoch", ["class", "AP %"], rows)
    click.echo(f"Trained for {_span(done.seconds)}; the checkpoint is {out / 'last.safetensors'}")
    if done.best:
        click.echo(f"Best mAP after epoch {done.best[1]}: {out / 'best.safetensors'}")
