"""Curves of a training run, from its log."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wsssfast.errors import WsssError
from wsssfast.report.charts import Chart, Series, line_chart
from wsssfast.training.logs import NAME, read_log

MOST_POINTS = 240  # of a line; more steps are averaged in groups
_MOST = 1e30  # of a value: a run that diverges may log more, or infinity


def training_charts(folder: Path) -> list[Chart]:
    """The loss over the steps, and the held-out mAP over the epochs where there is one.

    Args:
        folder: of the run.

    Raises:
        WsssError: no log of a training run there.
    """
    lines = read_log(folder)
    loss = _points((line["step"], line.get("loss")) for line in lines)
    if not loss:
        raise WsssError(
            f"Expected the log of a training run at {folder / NAME}, found none.",
            "Give the --out of `wsssfast train`.",
        )
    last = loss[-1]
    charts = [
        line_chart(
            "Training loss",
            f"The loss over {len(loss)} steps, {_grouped(loss)}; {last[1]:.3f} at step "
            f"{last[0]:.0f}.",
            "step",
            "loss",
            [Series("loss", _averaged(loss), f"{last[1]:.3f} at the last step", None, 3)],
            whole=True,
        )
    ]
    scored = [line for line in lines if isinstance(line.get("scores"), dict)]
    series = []
    for key, name, colour in (
        ("mAP", "mAP of the class tokens", 5),
        ("mAP_patch", "mAP of the patch head", 3),
    ):
        points = _points((line.get("epoch"), line["scores"].get(key)) for line in scored)
        if points:
            best = max(points, key=lambda point: point[1])
            percent = [(epoch, 100 * value) for epoch, value in points]
            note = f"best {100 * best[1]:.1f} % after epoch {best[0]:.0f}"
            series.append(Series(name, percent, note, (best[0], 100 * best[1]), colour))
    if series:
        told = "; ".join(f"{line.name}: {line.note}" for line in series)
        charts.append(
            line_chart(
                "Mean average precision on held-out images",
                f"{told}.",
                "epoch",
                "mAP %",
                series,
                whole=True,
            )
        )
    return charts


def _points(pairs: Iterable[tuple[Any, Any]]) -> list[tuple[float, float]]:
    """The pairs of numbers that a chart can show, sorted by the first."""
    numbers = [
        (float(x), float(y))
        for x, y in pairs
        if all(isinstance(v, (int, float)) and abs(v) < _MOST for v in (x, y))
    ]
    return sorted(numbers)


def _group(points: list[tuple[float, float]]) -> int:
    return -(-len(points) // MOST_POINTS)


def _averaged(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of successive points, so that at most `MOST_POINTS` remain."""
    size = _group(points)
    groups = [points[n : n + size] for n in range(0, len(points), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def _grouped(points: list[tuple[float, float]]) -> str:
    size = _group(points)
    return f"each point the mean of {size}" if size > 1 else "each a point"
