"""One HTML page of an ablation, or of those of several classifiers: its table and curves."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
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
NAMES = {
    "stage": "stage", "scales": "scales", "c2p_layers": "c2p layers", "p2p_layers": "p2p layers",
    "propagation": "propagation", "related_by": "related by", "ratio": "ratio", "alpha": "alpha",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A setting over all classifiers; scores in percent.

    Attributes:
        setting: what was scored.
        mean: mIoU.
        spread: standard deviation of the mIoU over the classifiers; None for one classifier.
        gain: mean over the classifiers of the mIoU of the final stage less that of the same
            without modulation; None for other stages, or where the latter was not scored.
        gain_spread: its standard deviation, as `spread`.
        thresholds: best background scores, classifier by classifier.
    """

    setting: Setting
    mean: float
    spread: float | None
    gain: float | None
    gain_spread: float | None
    thresholds: list[float]

    def texts(self) -> list[str]:
        """The fields of the setting, as tables show them."""
        return [text_of(getattr(self.setting, key)) for key in NAMES]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {**asdict(self), "setting": self.setting.to_json()}


def rows_of(ablations: Sequence[Ablation]) -> list[Row]:
    """A row for each setting.

    Args:
        ablations: of equal settings, one a classifier.
    """
    found = []
    for setting in ablations[0].scores:
        scores = [100 * run.scores[setting]["miou"] for run in ablations]
        base = replace(
            setting, stage="original+c2p+p2p", related_by=None, ratio=None, alpha=None
        )  # fmt: skip
        gains: list[float] = []
        if setting.stage == "final" and base in ablations[0].scores:
            plain = [100 * run.scores[base]["miou"] for run in ablations]
            gains = [score - of_base for score, of_base in zip(scores, plain, strict=True)]
        thresholds = [run.scores[setting]["threshold"] for run in ablations]
        gain = statistics.mean(gains) if gains else None
        row = Row(setting, statistics.mean(scores), _spread(scores), gain, _spread(gains),
                  thresholds)  # fmt: skip
        found.append(row)
    return found


def _spread(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def write_ablation_report(out: Path, ablations: Sequence[Ablation], title: str) -> None:
    """Write one self-contained HTML file; equal input gives an equal file.

    Args:
        out: the file; its folder is made.
        ablations: what to show: of equal settings, one a classifier.
        title: of the page.
    """
    rows = rows_of(ablations)
    write_page(
        out,
        "ablation.html",
        title=title,
        images=ablations[0].images,
        classifiers=len(ablations),
        header=list(NAMES.values()),
        rows=rows,
        best=max(row.mean for row in rows),
        charts=charts_of({row.setting: row.mean for row in rows}),
        failed=list({i: why for run in ablations for i, why in run.failed.items()}.items()),
    )  # fmt: skip


def charts_of(scores: Mapping[Setting, float]) -> list[Chart]:
    """A chart for each option that was varied with all others fixed, a line for each such row.

    Args:
        scores: setting -> mIoU in percent.
    """
    found = []
    for axis, label in _AXES.items():
        lines: dict[Setting, list[tuple[float, float]]] = defaultdict(list)
        for setting, score in scores.items():
            value = getattr(setting, axis)
            if value is not None:
                lines[_without(setting, axis)].append((value, score))
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
        named = [f"{NAMES[name]} {text_of(getattr(rest, name))}" for name in differ]
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
        whole=all(isinstance(x, int) for points in lines.values() for x, _ in points),
        from_zero=False,
    )


def text_of(value: object) -> str:
    """A field of a setting as tables show it; empty where it does not matter."""
    if isinstance(value, tuple):
        return ",".join(f"{one:g}" for one in value)
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
