"""The training loop: the same for every network that is trained here."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import which
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from wsssfast.errors import INTERRUPTED, WsssError
from wsssfast.precision import autocast
from wsssfast.training.logs import Logs
from wsssfast.training.mishaps import telling_mishaps
from wsssfast.training.optimise import build_optimiser, rate_at, set_rate
from wsssfast.training.options import RunOptions, Schedule
from wsssfast.training.samples import Sample, StepKeys, collate, drawn_by
from wsssfast.training.state import Progress, load_state, save_state
from wsssfast.training.workers import (
    Interruption,
    Workers,
    interruption,
    leave_signals_to_parent,
)

_TOGETHER = 10  # steps between two questions to all workers whether to stop or save


@dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        model: on the device of its worker.
        samples: map from (epoch, index) to a sample, and its length.
        loss: of the model's output and a batch's targets.
        groups: parameter groups, from `optimise.parameter_groups`.
        prepare: called with a batch's factors of stochastic depth before the forward.
        evaluate: scores after an epoch, called on every worker; None where nothing is held out. Its
            `unreadable` holds id -> reason of what could not be scored.
        chosen_by: which of the scores makes a checkpoint the best, larger being better.
        save: writes the model alone to a file.
        identity: everything that changes the result.
    """

    model: nn.Module
    samples: TorchDataset[Sample]
    loss: Callable[[Any, Tensor], Tensor]
    groups: list[dict[str, Any]]
    prepare: Callable[[Tensor], None]
    evaluate: Callable[[], dict[str, Any]] | None
    chosen_by: str
    save: Callable[[Path, dict[str, Any]], None]
    identity: dict[str, Any]


@dataclass(frozen=True)
class Report:
    """What `fit` tells while it runs.

    Attributes:
        step: steps done.
        steps: steps of the whole run.
        epoch: number of the epoch, from 1, that the last of them belongs to.
        loss: mean over the steps since the last report.
        images_per_second: over the same.
        seconds_left: what is left at this speed, without scoring.
        waiting: share of that time spent waiting for samples.
        scores: after an epoch, what `Task.evaluate` gave.
    """

    step: int
    steps: int
    epoch: int
    loss: float
    images_per_second: float
    seconds_left: float
    waiting: float
    scores: dict[str, Any] | None = None


@runtime_checkable
class Listener(Protocol):
    """A `report` that is told of the beginning too."""

    def begin(self, images: int, options: Schedule, step: int, steps: int) -> None:
        """Called before the first step, with the steps done before and those of the whole run."""


def fit(
    task: Task,
    options: Schedule,
    out: Path,
    *,
    run: RunOptions | None = None,
    workers: Workers | None = None,
    report: Callable[[Report], None] = lambda report: None,
) -> Progress:
    """Train to the end, from where the run in `out` stopped.

    Leaves `last.safetensors`, `best.safetensors` where something is held out, `log.jsonl`,
    `tensorboard/` and `resume.safetensors`. On CPU an interrupted and resumed run ends with the
    bits of one that was not.

    Args:
        task: what is trained.
        options: the schedule.
        out: an existing folder.
        run: how to carry it out.
        workers: this process among those of the run.
        report: called on the first worker at every write to the logs; a `Listener` is told of the
            beginning first.

    Raises:
        WsssError: a batch that does not divide among the workers, fewer images than a batch, a loss
            that is not finite, what `telling_mishaps` tells, or (code 4) an interruption; the state
            is saved then.
    """
    run, workers = run or RunOptions(), workers or Workers()
    length = len(task.samples)  # type: ignore[arg-type]
    require_sizes(length, options, workers)
    per_epoch = length // options.batch_size
    optimiser = build_optimiser(task.groups, options)
    progress = load_state(out, task.model, optimiser, task.identity)
    total = options.epochs * per_epoch
    if progress.step >= total:
        return progress
    if workers.first and isinstance(report, Listener):
        report.begin(length, options, progress.step, total)
    with telling_mishaps(out, workers.device), interruption() as asked:
        loop = _Loop(task, options, out, run, workers, optimiser, progress, per_epoch, report)
        try:
            loop.run(range(progress.step, total), length, asked)
        finally:
            loop.close()
    return progress


def require_sizes(length: int, options: Schedule, workers: Workers) -> None:
    """Refuse a batch that does not divide among the workers, or more than there are images.

    Raises:
        WsssError: says which.
    """
    parts = workers.world * options.accumulate
    if options.batch_size % parts:
        raise WsssError(
            f"Expected a batch size that divides into {workers.world} workers times "
            f"{options.accumulate} accumulation steps, found {options.batch_size}."
        )
    if length < options.batch_size:
        raise WsssError(
            f"Expected at least one batch of {options.batch_size} images, found {length}.",
            "Reduce --batch-size.",
        )


class _Loop:
    """The state of one call of `fit`."""

    def __init__(
        self,
        task: Task,
        options: Schedule,
        out: Path,
        run: RunOptions,
        workers: Workers,
        optimiser: torch.optim.Optimizer,
        progress: Progress,
        per_epoch: int,
        report: Callable[[Report], None],
    ) -> None:
        self.task, self.options, self.out, self.settings = task, options, out, run
        self.workers, self.optimiser, self.progress = workers, optimiser, progress
        self.per_epoch, self.report = per_epoch, report
        self.net = _wrap(task.model, run, workers)
        kind = workers.device.partition(":")[0]
        self.scaler = torch.amp.GradScaler(kind, enabled=options.precision == "fp16")
        if progress.scaler:
            self.scaler.load_state_dict(progress.scaler)
        if progress.step == 0:
            self._save()  # from here on the folder holds a run that can be continued
        self.logs = Logs(out, progress.step) if workers.first else None
        self.batches: Iterator[Sample] = iter(())
        self.pending: list[tuple[int, float, Tensor]] = []  # step, rate, loss
        self.since = self.saved = time.perf_counter()
        self.waited = 0.0

    def run(self, steps: range, length: int, asked: Interruption) -> None:
        """Train the given steps."""
        self.batches = self._batches(steps, length)
        for step in steps:
            rate = rate_at(step, self.per_epoch, self.options)
            set_rate(self.optimiser, rate)
            self.pending.append((step + 1, rate, self._step()))
            self.progress.step = step + 1
            ended = (step + 1) % self.per_epoch == 0
            stop = due = False
            if self.workers.world == 1 or ended or step % _TOGETHER == 0:
                due = time.perf_counter() - self.saved > 60 * self.settings.save_minutes
                stop, due = self.workers.most(asked.asked, due)
            saving = ended or stop or due
            if saving or len(self.pending) >= self.settings.log_steps:
                told = self._flush(steps.stop)
                if saving:
                    self._require_finite_weights()
                if ended:
                    told = self._end_epoch(told)
                if saving:
                    self._save()
                if self.workers.first:
                    self.report(told)
            if stop and step + 1 < steps.stop:
                raise WsssError(
                    f"Interrupted after step {step + 1} of {steps.stop}; the state is saved.",
                    "Run the same command again to continue.",
                    INTERRUPTED,
                )

    def _batches(self, steps: range, length: int) -> Iterator[Sample]:
        options, workers, run = self.options, self.workers, self.settings
        keys = StepKeys(
            length, options.batch_size, options.accumulate, workers.rank, workers.world,
            options.seed, steps,
        )  # fmt: skip
        return iter(
            DataLoader(
                self.task.samples,
                batch_sampler=keys,
                num_workers=run.loader_workers,
                collate_fn=collate,
                pin_memory=workers.device.startswith("cuda"),
                worker_init_fn=leave_signals_to_parent,
                generator=torch.Generator(),  # or it draws from the global one
                multiprocessing_context="fork" if run.loader_workers else None,
            )
        )

    def close(self) -> None:
        """End the loader processes, which nothing else would, and the logs."""
        try:
            getattr(self.batches, "_shutdown_workers", lambda: None)()
        finally:  # PyTorch interrupts even this when a loader process was killed
            if self.logs:
                self.logs.close()

    def _step(self) -> Tensor:
        """One optimiser step; returns its loss, still on the device."""
        parts, device = self.options.accumulate, self.workers.device
        total = torch.zeros((), device=device)
        for part in range(parts):
            batch = self._next()
            self.progress.failed.update(batch.failed)
            self.task.prepare(batch.keep.to(device, non_blocking=True))
            image = batch.image.to(device, non_blocking=True)
            target = batch.target.to(device, non_blocking=True)
            with self._sync(last=part == parts - 1):
                with self._drawn(part), autocast(self.workers.device, self.options.precision):
                    loss = self.task.loss(self.net(image), target) / parts
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        return total

    def _next(self) -> Sample:
        start = time.perf_counter()
        try:
            batch = next(self.batches)
        except WsssError as error:
            if not self.settings.loader_workers:
                raise
            # from a loader process it brings the traceback along
            raise WsssError(error.message.rpartition("WsssError: ")[2]) from error
        self.waited += time.perf_counter() - start
        return batch

    @contextlib.contextmanager
    def _drawn(self, part: int) -> Iterator[None]:
        """Dropout as a function of seed, step, worker and part; other states stay as they are."""
        device = torch.device(self.workers.device)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            place = self.workers.rank * self.options.accumulate + part
            torch.manual_seed(drawn_by(self.options.seed, self.progress.step, place) % 2**63)
            yield

    def _sync(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients are averaged over the workers once a step only."""
        if last or not isinstance(self.net, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.net.no_sync()

    def _flush(self, steps: int) -> Report:
        """Check and log the losses since the last call."""
        losses = self.workers.mean(torch.stack([loss for _, _, loss in self.pending])).tolist()
        for (step, _, _), loss in zip(self.pending, losses, strict=True):
            if not math.isfinite(loss):
                raise WsssError(
                    f"Expected a finite loss, found {loss} at step {step}.",
                    "Lower --rate; the state saved last is untouched.",
                )
        now = time.perf_counter()
        seconds = max(now - self.since, 1e-9)
        speed = len(losses) * self.options.batch_size / seconds
        rows = [
            {"step": step, "epoch": (step - 1) // self.per_epoch + 1, "loss": loss, "rate": rate,
             "images_per_second": speed}
            for (step, rate, _), loss in zip(self.pending, losses, strict=True)
        ]  # fmt: skip
        if self.logs:
            self.logs.steps(rows)
        self.progress.seconds += seconds
        done = self.progress.step
        told = Report(
            step=done,
            steps=steps,
            epoch=(done - 1) // self.per_epoch + 1,
            loss=sum(losses) / len(losses),
            images_per_second=speed,
            seconds_left=(steps - done) * self.options.batch_size / speed,
            waiting=self.waited / seconds,
        )
        self.pending.clear()
        self.since, self.waited = now, 0.0
        return told

    def _require_finite_weights(self) -> None:
        """Nothing that a NaN has reached is scored or saved."""
        if not all(bool(p.isfinite().all()) for p in self.task.model.parameters()):
            raise WsssError(
                f"Expected finite weights, found NaN or infinity after step {self.progress.step}.",
                "Lower --rate and start anew; the state saved last is from before.",
            )

    def _end_epoch(self, told: Report) -> Report:
        """Score, log, and write the models."""
        for failed in self.workers.gather(self.progress.failed):
            self.progress.failed.update(failed)
        scores = None
        if self.task.evaluate:
            self.task.model.eval()
            with torch.no_grad(), autocast(self.workers.device, self.options.precision):
                scores = self.task.evaluate()
            self.task.model.train()
            self.progress.failed.update(scores.get("unreadable", {}))
        epoch = self.progress.step // self.per_epoch
        if self.logs:
            row = {"step": self.progress.step, "epoch": epoch, "scores": scores or {}}
            if scores:
                self.logs.epoch(row)
            self.task.save(self.out / "last.safetensors", row)
        if scores:
            score = scores[self.task.chosen_by]
            if self.progress.best is None or score > self.progress.best[0]:
                self.progress.best = (score, epoch)
                if self.logs:
                    self.task.save(self.out / "best.safetensors", row)
        self.since = time.perf_counter()
        return replace(told, scores=scores or {})

    def _save(self) -> None:
        self.progress.scaler = self.scaler.state_dict() if self.scaler.is_enabled() else {}
        if self.workers.first:
            save_state(self.out, self.task.model, self.optimiser, self.progress, self.task.identity)
        self.saved = time.perf_counter()


def _wrap(model: nn.Module, run: RunOptions, workers: Workers) -> Callable[[Tensor], Any]:
    """The model as it is called in training."""
    model.train()
    if run.compile and workers.device == "cpu" and not (which("g++") or which("clang++")):
        raise WsssError("Expected a C++ compiler for --compile, found none.", "Leave it out.")
    net: Any = torch.compile(model) if run.compile else model
    if workers.world > 1:
        devices = [workers.device] if workers.device.startswith("cuda") else None
        net = DistributedDataParallel(net, device_ids=devices)
    called: Callable[[Tensor], Any] = net
    return called
