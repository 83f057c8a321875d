"""Run a benchmark: every case in turn, whatever one of them does."""

import gc
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from wsssfast.bench import operations
from wsssfast.bench.cases import Case, build
from wsssfast.bench.memory import FreshProcesses, available, cuda_peak
from wsssfast.bench.options import BenchOptions, Spec
from wsssfast.bench.peaks import Peaks, measure_peaks
from wsssfast.bench.report import Row, left_out, rows_of, summary
from wsssfast.bench.shapes import shape_of
from wsssfast.bench.timing import Turns, reason_of, take_turns
from wsssfast.precision import Precision

_SETS = 3  # of inputs, in rotation
_SPARE = 0.8  # of a CPU's free memory: what would take more is left out, not tried


@dataclass(frozen=True)
class Found:
    """The result of a benchmark.

    Attributes:
        rows: of every contender of every case.
        summary: rows and all that they depend on, as plain JSON types.
    """

    rows: list[Row]
    summary: dict[str, Any]


def specs_of(options: BenchOptions) -> list[Spec]:
    """The cases of a benchmark, forwards first; operations in float32 only once."""
    options = options.resolved()
    return [
        Spec(
            what, options.arch, options.classes, options.per_image, size, batch, precision,
            options.device, options.compiled,
        )
        for what in _whats(options)
        for size in options.sizes
        for batch in options.batches
        for precision in _precisions(what, options)
    ]  # fmt: skip


def bench(
    options: BenchOptions,
    progress: Callable[[int], None] = lambda cases: None,
    begin: Callable[[str], None] = lambda case: None,
) -> Found:
    """Measure every case.

    Args:
        options: what to measure; the device must exist.
        progress: called with 1 after each case.
        begin: called with what each case is before it is measured.

    Raises:
        WsssError: an architecture or a size that cannot be.
    """
    options, start = options.resolved(), time.monotonic()
    specs = specs_of(options)
    for spec in specs:
        shape_of(spec)  # refuses what cannot be before anything is measured
    peaks = measure_peaks(options.device, options.precisions)
    rows: list[Row] = []
    for spec in specs:
        if options.limit and time.monotonic() - start > options.limit:
            rows.append(left_out(spec, f"left out: over the limit of {options.limit:g} s"))
        else:
            begin(told_of(spec))
            rows += _measure_or_tell(spec, options, peaks)
        progress(1)
    return Found(rows, summary(options, rows, peaks))


def told_of(spec: Spec) -> str:
    """`forward 224x224, batch 1, fp32`."""
    height, width = spec.size
    return f"{spec.what} {height}x{width}, batch {spec.batch}, {spec.precision}"


def measure(spec: Spec, seconds: float, memory: bool, peaks: Peaks) -> list[Row]:
    """The rows of one case.

    Args:
        spec: of the case.
        seconds: to measure for.
        memory: whether to measure peak memory too.
        peaks: of the machine.
    """
    _free(spec.device)
    case = build(spec, _SETS)
    room = _SPARE * available() if spec.device == "cpu" else math.inf
    fit = [contender for contender in case.contenders if contender.needs <= room]
    turns = take_turns(fit, spec.device, seconds, _SETS)
    for contender in case.contenders:
        if contender not in fit:
            needed = contender.needs / 1e9
            turns.failed[contender.name] = f"out of memory: needs {needed:.1f} GB, not tried"
    held = dict(_peaks_of(case, turns)) if memory else {}
    rows = rows_of(case, turns, held, peaks)
    del case, fit
    _free(spec.device)
    return rows


def _measure_or_tell(spec: Spec, options: BenchOptions, peaks: Peaks) -> list[Row]:
    """The rows of a case; one that says why where its inputs cannot be made, or the GPU is lost."""
    try:
        return measure(spec, options.seconds, options.memory, peaks)
    except Exception as error:  # whatever it is, the cases before it must not be lost
        return [left_out(spec, reason_of(error))]


def _whats(options: BenchOptions) -> list[str]:
    whats = ["forward"] if "forward" in options.what else []
    return whats + list(operations.names(options.device) if "operations" in options.what else ())


def _precisions(what: str, options: BenchOptions) -> tuple[Precision, ...]:
    by_precision = what == "forward" or operations.OPERATIONS[what].by_precision
    return options.precisions if by_precision else ("fp32",)


def _peaks_of(case: Case, turns: Turns) -> Iterator[tuple[str, int | None]]:
    """Contender -> bytes of one call, of those that have a time."""
    fresh = FreshProcesses()
    for contender in case.contenders:
        if contender.name not in turns.times:
            continue
        if case.spec.device == "cuda":
            yield contender.name, cuda_peak(contender.call)
        else:
            yield contender.name, fresh.peak(case.spec, contender.name)


def _free(device: str) -> None:
    """Give back what an earlier case held."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
