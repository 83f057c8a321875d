"""One HTML page of an ablation: its tables, and curves over what was varied."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from wsssfast.ablation import Ablation, Setting
from wsssfast.report.charts import Chart, Series, line_chart
from wsssfast.report.page import write_page

_AXES = {
    "ratio": "share of related patches",
    "alpha": "weight of the related mean, alpha",
    "c2p_layers": "last layers of the class-to-patch attention",
    "p2p_layers": "last layers of the patch-to-patch attention",
}
_COLOURS = 6  # of lines, in the style sheet
_NAMES = {
    "stage": "stage", "scales": "scales", "c2p_layers": "c2p layers", "p2p_layers": "p2p layers",
    "propagation": "propagation", "related_by": "related by", "ratio": "ratio", "alpha": "alpha",
}  # fmt: skip


def write_ablation_report(out: Path, ablation: Ablation, title: str) -> None:
    """Write one self-contained HTML file; equal input gives an equal file.

    Args:
        out: the file; its folder is made.
        ablation: what to show.
        title: of the page.
    """
    header = [name for key, name in _NAMES.items()]
    rows = [
        ([text_of(getattr(setting, key)) for key in _NAMES], found["miou"], found["threshold"])
        for setting, found in ablation.scores.items()
    ]
    write_page(
        out,
        "ablation.html",
        title=title,
        images=ablation.images,
        header=header,
        rows=rows,
        best=max(miou for _, miou, _ in rows),
        charts=charts_of(ablation.scores),
        failed=list(ablation.failed.items()),
    )  # fmt: skip


def charts_of(scores: Mapping[Setting, Mapping[str, Any]]) -> list[Chart]:
    """A chart for each option that was varied with all others fixed, a line for each such row."""
    found = []
    for axis, label in _AXES.items():
        lines: dict[Setting, list[tuple[float, float]]] = defaultdict(list)
        for setting, score in scores.items():
            value = getattr(setting, axis)
            if value is not None:
                lines[_without(setting, axis)].append((value, 100 * score["miou"]))
        drawn = {rest: sorted(points) for rest, points in lines.items() if len(points) > 1}
        if drawn:
            found.append(_chart(label, drawn))
    return found


def _without(setting: Setting, axis: str) -> Setting:
    changes: dict[str, Any] = {axis: None}
    return replace(setting, **changes)


def _chart(label: str, lines: dict[Setting, list[tuple[float, float]]]) -> Chart:
    differ = [f.name for f in fields(Setting) if len({getattr(s, f.name) for s in lines}) > 1]
    series = []
    for number, (rest, points) in enumerate(lines.items()):
        best = max(points, key=lambda point: point[1])
        named = [f"{_NAMES[name]} {text_of(getattr(rest, name))}" for name in differ]
        series.append(
            Series(
                name=", ".join(named) or rest.stage,
                points=points,
                note=f"best {best[1]:.2f} % at {best[0]:g}",
                mark=best,
                colour=number % _COLOURS,
            )
        )
    return line_chart(
        f"mIoU by {label}",
        "; ".join(f"{line.name}: {line.note}" for line in series) + ".",
        label,
        "mIoU %",
        series,
        from_zero=False,
    )


def text_of(value: object) -> str:
    """A field of a setting as tables show it; empty where it does not matter."""
    if isinstance(value, tuple):
        return ",".join(f"{one:g}" for one in value)
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
