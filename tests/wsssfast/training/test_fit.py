"""The loop: repeatable, exactly resumable, and the same however it is shared out."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors
import torch
from support import tiny_config

from wsssfast.data import open_dataset
from wsssfast.data.dataset import hold_out
from wsssfast.errors import INTERRUPTED, WORKER_FAILED, WsssError
from wsssfast.models.checkpoint import load_model, weights_hash
from wsssfast.training.classifier import classifier_task, train_classifier
from wsssfast.training.fit import fit
from wsssfast.training.logs import read_log
from wsssfast.training.options import ClassifierOptions, RunOptions
from wsssfast.training.workers import Workers

QUIET = RunOptions(loader_workers=0, log_steps=1)


def options(**changes):
    usual = {"epochs": 2, "batch_size": 8, "rate": 1e-3, "rate_batch": 8, "warmup_epochs": 0.5}
    return ClassifierOptions(**{**usual, "drop_path": 0.3, "erase": 0.5, **changes})


def train(out, chosen=None, run=QUIET, split="train:30", report=lambda told: None, held_out=None):
    scenes = open_dataset("synthetic", split=split)
    config = tiny_config(classes=scenes.class_names)
    return train_classifier(
        scenes, config, chosen or options(), out, run=run, report=report, held_out=held_out
    )


def losses(out):
    return [row["loss"] for row in read_log(out) if "loss" in row]


def test_the_same_arguments_give_the_same_weights(tmp_path):
    before = torch.random.get_rng_state()
    first = weights_hash(train(tmp_path / "a")[0])
    assert torch.equal(before, torch.random.get_rng_state())
    assert weights_hash(train(tmp_path / "b")[0]) == first
    assert weights_hash(train(tmp_path / "c", options(seed=1))[0]) != first
    assert weights_hash(load_model(tmp_path / "a" / "last.safetensors")) == first


def test_the_loss_falls(tmp_path):
    chosen = options(
        epochs=40, batch_size=16, rate=3e-3, rate_batch=16, drop_path=0, erase=0, jitter=0,
        least_area=1.0,
    )  # fmt: skip
    train(tmp_path, chosen, split="train:16")
    found = losses(tmp_path)
    assert len(found) == 40
    assert sum(found[-5:]) < 0.8 * sum(found[:5])


def interrupt_at(step):
    def report(told):
        if told.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return report


@pytest.mark.parametrize("step", [1, 2, 3, 4])  # three steps an epoch
def test_interrupted_and_resumed_ends_with_the_same_bits(tmp_path, step):
    train(tmp_path / "whole")
    with pytest.raises(WsssError, match="Run the same command again") as caught:
        train(tmp_path / "cut", report=interrupt_at(step))
    assert caught.value.code == INTERRUPTED
    train(tmp_path / "cut", run=RunOptions(loader_workers=1, log_steps=2))
    for name in ("whole", "cut"):
        assert len(losses(tmp_path / name)) == 6
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    same = [load_model(tmp_path / n / "last.safetensors") for n in ("whole", "cut")]
    assert weights_hash(same[0]) == weights_hash(same[1])


def test_dropout_goes_on_where_it_stopped(tmp_path):
    """As ResNet38 has it: drawn while the network runs, not with the sample."""
    scenes = open_dataset("synthetic", split="train:16")

    def run(name, rate, report=lambda told: None):
        config = tiny_config(classes=scenes.class_names)
        model, task = classifier_task(scenes, config, options(), Workers())
        model.blocks[1].mlp.drop1 = torch.nn.Dropout(rate)
        (tmp_path / name).mkdir(exist_ok=True)
        fit(task, options(), tmp_path / name, run=QUIET, report=report)

    run("whole", 0.5)
    with pytest.raises(WsssError, match="Run the same command again"):
        run("cut", 0.5, interrupt_at(2))
    run("cut", 0.5)
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    run("none", 0.0)
    assert losses(tmp_path / "whole") != losses(tmp_path / "none")


def test_killed_inside_an_epoch_and_resumed_ends_with_the_same_bits(tmp_path):
    code = f"""
import os, signal, sys
sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
from pathlib import Path
from test_fit import *
def report(told):
    if told.step == 5: os.kill(os.getpid(), signal.SIGKILL)
train(Path({str(tmp_path / "cut")!r}), run=RunOptions(0, False, 1e-9, 1), report=report)
"""
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    train(tmp_path / "cut")
    train(tmp_path / "whole")
    same = [load_model(tmp_path / n / "last.safetensors") for n in ("whole", "cut")]
    assert weights_hash(same[0]) == weights_hash(same[1])


class Heard:
    """A report that hears of the beginning."""

    def __init__(self, step=0):
        self.told, self.interrupt = [], interrupt_at(step)

    def begin(self, images, options, step, steps):
        self.told.append((images, options.batch_size, step, steps))

    def __call__(self, told):
        assert self.told
        self.interrupt(told)


def test_the_beginning_is_told_with_the_steps_done_before(tmp_path):
    cut, rest, nothing = Heard(2), Heard(), Heard()
    with pytest.raises(WsssError, match="Run the same command again"):
        train(tmp_path, report=cut)
    train(tmp_path, report=rest)
    train(tmp_path, report=nothing)
    assert (cut.told, rest.told, nothing.told) == ([(30, 8, 0, 6)], [(30, 8, 3, 6)], [])


def test_a_finished_run_stays_as_it_is(tmp_path):
    train(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    _, done = train(tmp_path)
    assert done.step == 6
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}


def test_accumulation_changes_nothing_but_rounding(tmp_path):
    train(tmp_path / "one")
    train(tmp_path / "four", options(accumulate=4))
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "four"), abs=1e-5)


def test_two_gloo_workers_are_one_with_the_doubled_batch(tmp_path):
    """Each of two workers takes 4 of the 8 images that one worker takes alone."""
    script = tmp_path / "run.py"
    script.write_text(
        f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
from pathlib import Path
from test_fit import *
from wsssfast.training.classifier import classifier_task
from wsssfast.training.fit import fit
from wsssfast.training.workers import join_workers
scenes = open_dataset("synthetic", split="train:30")
out = Path({str(tmp_path / "two")!r})
with join_workers("cpu") as workers:
    workers.first_does(out.mkdir)
    task = classifier_task(scenes, tiny_config(classes=scenes.class_names), options(), workers,
                           held_out=open_dataset("synthetic", split="val:9"))[1]
    fit(task, options(), out, run=QUIET, workers=workers)
"""
    )
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [sys.executable, *launch, str(script)],
        capture_output=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    held_out = open_dataset("synthetic", split="val:9")
    train(tmp_path / "one", held_out=held_out)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(two) == 6
    assert one == pytest.approx(two, abs=1e-5)
    scores = [
        [row["scores"] for row in read_log(tmp_path / n) if "scores" in row] for n in ("one", "two")
    ]
    assert scores[0][-1]["mAP"] == pytest.approx(scores[1][-1]["mAP"], abs=1e-3)
    assert scores[0][-1]["images"] == scores[1][-1]["images"] == 9


def test_best_is_the_epoch_of_the_highest_map(tmp_path):
    scenes, held_out = hold_out(open_dataset("synthetic", split="train:40"), 4)
    assert len(scenes) == 30 and len(held_out) == 10
    assert [item.id for item in held_out][:2] == ["train_00000", "train_00004"]
    _, done = train(tmp_path, options(epochs=3), held_out=held_out)
    scores = {row["epoch"]: row["scores"]["mAP"] for row in read_log(tmp_path) if "scores" in row}
    assert done.best == (max(scores.values()), max(scores, key=scores.get))
    with safetensors.safe_open(tmp_path / "best.safetensors", "pt") as file:
        assert json.loads(file.metadata()["wsssfast"])["training"]["epoch"] == done.best[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 31}, "one batch of 31 images, found 30"),
        ({"accumulate": 3}, "divides into 1 workers times 3"),
        ({"rate": 1e3, "rate_batch": 1, "warmup_epochs": 0.0}, "finite loss, found"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path, changes, message):
    with pytest.raises(WsssError, match=message):
        train(tmp_path, options(epochs=30, **changes))


@pytest.mark.parametrize("name", ["epochs", "accumulate", "drop_path", "least_area", "resize"])
def test_options_out_of_range_are_refused(name):
    with pytest.raises(WsssError, match=name.replace("_", "-")):
        options(**{name: -1})


def test_another_configuration_is_not_mixed_in(tmp_path):
    train(tmp_path)
    before = (tmp_path / "log.jsonl").read_bytes()
    with pytest.raises(WsssError, match="jitter"):
        train(tmp_path, options(jitter=0.1))
    assert (tmp_path / "log.jsonl").read_bytes() == before


def test_a_damaged_state_is_refused(tmp_path):
    train(tmp_path)
    path = tmp_path / "resume.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WsssError, match="damaged"):
        train(tmp_path)


@pytest.mark.slow
def test_compiled_it_trains_alike(tmp_path):
    train(tmp_path / "plain")
    train(tmp_path / "compiled", run=RunOptions(loader_workers=0, compile=True, log_steps=1))
    assert losses(tmp_path / "plain") == pytest.approx(losses(tmp_path / "compiled"), abs=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_resumes_exactly_too(tmp_path, precision):
    chosen = options(precision=precision, epochs=1)
    train(tmp_path / "whole", chosen)
    with pytest.raises(WsssError, match="Run the same command again"):
        train(tmp_path / "cut", chosen, report=interrupt_at(1))
    train(tmp_path / "cut", chosen)
    same = [load_model(tmp_path / n / "last.safetensors") for n in ("whole", "cut")]
    assert weights_hash(same[0]) == weights_hash(same[1])


def test_a_loader_process_that_dies_is_told_in_one_line(tmp_path):
    def kill(told):
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)

    with pytest.raises(WsssError, match="A loader process died") as caught:
        train(tmp_path, options(epochs=40), RunOptions(loader_workers=1, log_steps=1), report=kill)
    assert caught.value.code == WORKER_FAILED
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    "error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()]
)
def test_reading_from_a_dead_loader_process_is_not_taken_for_a_full_disk(
    tmp_path, monkeypatch, error
):
    def broken(*args):
        raise error

    monkeypatch.setattr("wsssfast.training.fit._Loop.run", broken)
    with pytest.raises(WsssError, match="A loader process died") as caught:
        train(tmp_path, options(epochs=1))
    assert caught.value.code == WORKER_FAILED


def test_an_error_in_a_loader_process_is_one_line_and_leaves_none_behind(tmp_path):
    scenes = open_dataset("synthetic", split="train:30")
    seen = []

    def unreadable(item):
        seen.append(item)
        if len(seen) > 4:
            raise WsssError("Expected something, found nothing.", "Mend it.")
        return scenes.load_image(item)

    broken = replace(scenes, load_image=unreadable)
    with pytest.raises(WsssError) as caught:
        train_classifier(
            broken, tiny_config(classes=scenes.class_names), options(), tmp_path,
            run=RunOptions(loader_workers=1),
        )  # fmt: skip
    assert caught.value.message == "Expected something, found nothing. Mend it."
    assert multiprocessing.active_children() == []


def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch):
    """The loss of the last step before a save is that of the weights before the step."""

    def explode(optimiser, rate):
        for group in optimiser.param_groups:
            group["lr"] = float("inf")

    monkeypatch.setattr("wsssfast.training.fit.set_rate", explode)
    with pytest.raises(WsssError, match="finite weights"):
        train(tmp_path, options(epochs=1, batch_size=30))
    assert not (tmp_path / "last.safetensors").exists()
