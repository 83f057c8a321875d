"""Rows of what was found: ratios, shares of the ceiling, a table of text and one JSON object."""

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from wsssfast import kernels
from wsssfast.bench.cases import Case
from wsssfast.bench.options import BenchOptions, Spec
from wsssfast.bench.peaks import Peaks
from wsssfast.bench.shapes import shape_of
from wsssfast.bench.timing import Turns
from wsssfast.versions import versions

HEADER = ["what", "contender", "median ms", "p20", "p80", "ratio", "img/s", "% peak", "peak MB"]


@dataclass(frozen=True)
class Row:
    """One contender at one size.

    Attributes:
        what: forward, or the operation.
        size: HxW of the images.
        classes: C.
        per_image: classes that are refined.
        patches: N.
        batch: B.
        precision: of the network.
        contender: its name.
        baseline: the contender that the ratio is to.
        median_ms: of `runs` calls.
        p20_ms: of the same.
        p80_ms: of the same.
        runs: how many; 0 where the note says why.
        ratio: median over the baseline's; above 1 is slower.
        images_per_second: of the median.
        percent_of_peak: of the ceiling that binds, for the least work of the shapes.
        bound: which ceiling that is: bytes or flops.
        peak_mb: memory of one call beyond what was there before it.
        graph: whether it was replayed from a CUDA graph.
        note: why there is no time; empty where there is one.
    """

    what: str
    size: str
    classes: int
    per_image: int
    patches: int
    batch: int
    precision: str
    contender: str
    baseline: str
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    runs: int = 0
    ratio: float | None = None
    images_per_second: float | None = None
    percent_of_peak: float | None = None
    bound: str = ""
    peak_mb: float | None = None
    graph: bool = False
    note: str = ""


def rows_of(case: Case, turns: Turns, memory: Mapping[str, int | None], peaks: Peaks) -> list[Row]:
    """A row for each contender, those without a time too.

    Args:
        case: that was measured.
        turns: times and failures by contender.
        memory: peak bytes by contender, where measured.
        peaks: of the machine.
    """
    spec = case.spec
    baseline = turns.times.get(case.baseline)
    rows = []
    for contender in case.contenders:
        name = contender.name
        shared = (
            spec.what, _size(spec), spec.classes, spec.per_image, case.patches, spec.batch,
            spec.precision, name, case.baseline,
        )  # fmt: skip
        found = turns.times.get(name)
        if found is None:
            rows.append(Row(*shared, note=turns.failed.get(name, "not measured")))
            continue
        percent, bound = None, ""
        if case.work is not None:
            percent, bound = peaks.percent(case.work, spec.precision, found.median)
        bytes_held = memory.get(name)
        rows.append(
            Row(
                *shared,
                median_ms=found.median,
                p20_ms=found.p20,
                p80_ms=found.p80,
                runs=found.runs,
                ratio=found.median / baseline.median if baseline else None,
                images_per_second=1e3 * spec.batch / found.median,
                percent_of_peak=percent,
                bound=bound,
                peak_mb=None if bytes_held is None else bytes_held / 1e6,
                graph=name in turns.graphs,
            )
        )
    return rows


def left_out(spec: Spec, note: str) -> Row:
    """The row of a case of which nothing was measured."""
    return Row(
        spec.what, _size(spec), spec.classes, spec.per_image, shape_of(spec).patches, spec.batch,
        spec.precision, "all", "", note=note,
    )  # fmt: skip


def failures(rows: Sequence[Row]) -> list[Row]:
    """Rows whose contender raised something else than for want of memory."""
    return [row for row in rows if row.note.startswith("failed")]


def table_rows(rows: Sequence[Row]) -> list[list[str]]:
    """Text under `HEADER`, slower contenders like the others; a note takes the median's place."""
    table = []
    for row in rows:
        what = f"{row.what} {row.size} C{row.classes} B{row.batch} {row.precision}"
        if row.median_ms is None:
            table.append([what, row.contender, row.note, *[""] * (len(HEADER) - 3)])
            continue
        percent = "" if row.percent_of_peak is None else f"{row.percent_of_peak:.1f} {row.bound}"
        table.append(
            [
                what, row.contender, _digits(row.median_ms), _digits(row.p20_ms),
                _digits(row.p80_ms), "" if row.ratio is None else f"{row.ratio:.3f}",
                _digits(row.images_per_second), percent, _digits(row.peak_mb),
            ]
        )  # fmt: skip
    return table


def summary(options: BenchOptions, rows: Sequence[Row], peaks: Peaks) -> dict[str, Any]:
    """Everything that the numbers depend on, and the numbers, as plain JSON types."""
    return {
        "benchmark": "kernels",
        **machine(options.device),
        "options": options.to_json(),
        "peaks": peaks.to_json(),
        "rows": [asdict(row) for row in rows],
    }


def machine(device: str) -> dict[str, Any]:
    """What computed, and the versions that bear on how fast, as plain JSON types."""
    packages = [name for name in ("triton", "numpy") if find_spec(name)]
    return {
        "device": device_name(device),
        "backend": kernels.backend.for_device(device),
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "versions": versions(*packages),
    }


def device_name(device: str) -> str:
    """What the machine calls its GPU or processor."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _size(spec: Spec) -> str:
    return f"{spec.size[0]}x{spec.size[1]}"


def _digits(number: float | None) -> str:
    """Four digits that count."""
    if number is None:
        return ""
    return f"{number:.0f}" if number >= 1000 else f"{number:.4g}"
