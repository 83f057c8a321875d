"""The scores of the stages, read and checked, beside the published ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsssfast.errors import WsssError
from wsssfast.kernels import STAGES
from wsssfast.parse import json_of, what_fails

# mIoU in % of the paper's Tables 2, 4 and 5 (Li et al., 2025): VOC train, DeiT-S, full size. It
# gives none for original+c2p.
PUBLISHED = {
    "original": 46.1,
    "original+p2p": 54.2,
    "original+c2p+p2p": 61.7,
    "modulated": 59.3,
    "final": 63.6,
}
BASELINE = "original+c2p+p2p"  # MCTformer-V2


@dataclass(frozen=True)
class StageScore:
    """The scores of one stage at its best threshold; all but the threshold are fractions.

    Attributes:
        miou: mean IoU over the classes that occur.
        threshold: the background score with the best mIoU.
        fp: mean over the classes of false positives over the union.
        fn: mean over the classes of false negatives over the union.
        per_class: name -> IoU of the classes that occur, background first.
        curve: (threshold, mIoU), ascending.
        images: how many were scored.
    """

    miou: float
    threshold: float
    fp: float
    fn: float
    per_class: dict[str, float]
    curve: tuple[tuple[float, float], ...]
    images: int

    @property
    def at_the_end(self) -> bool:
        """Whether the best threshold is an end of the sweep, so that a better one may lie past."""
        return self.threshold in (self.curve[0][0], self.curve[-1][0])


def parse_scores(found: Mapping[str, Any], class_names: Sequence[str]) -> dict[str, StageScore]:
    """Check scores as `evaluate_cams` gives them.

    Args:
        found: stage -> scores.
        class_names: the C classes that were scored.

    Returns:
        In the order of `kernels.STAGES`.

    Raises:
        WsssError: unknown stages, other classes, or values that are no scores.
    """
    unknown = sorted(map(str, set(found) - set(STAGES)))
    if unknown or not found:
        raise WsssError(f"Expected scores of stages, found {', '.join(unknown)[:80] or 'none'}.")
    scores = {}
    for stage in filter(found.__contains__, STAGES):
        try:
            scores[stage] = _stage_score(found[stage])
            told = {*scores[stage].per_class, *found[stage]["absent_classes"]}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise WsssError(
                f"Expected the scores of `wsssfast evaluate cams --json` for {stage}: "
                f"{what_fails(error)}."
            ) from error
        if told != {"background", *class_names}:
            raise WsssError(
                f"Expected scores of the shards' {len(class_names)} classes, found others.",
                "Score these shards with `wsssfast evaluate cams --json`.",
            )
    return scores


def read_scores(path: Path) -> dict[str, Any]:
    """Stage -> scores from a file of `wsssfast evaluate cams --json`, of one stage or several.

    Raises:
        WsssError: no such file, or another kind of file.
    """
    try:
        found = json_of(path.read_text(encoding="utf-8"))
        stages = found["stages"] if "stages" in found else {found["stage"]: found}
        if not isinstance(stages, dict):
            raise TypeError("its stages are no object")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise WsssError(
            f"Expected scores in {path}: {what_fails(error)}.",
            "Make them with `wsssfast evaluate cams --json`.",
        ) from error
    return stages


@dataclass(frozen=True)
class ClassRow:
    """The IoU of one class at two stages, and how much the second is better; None: not measured."""

    name: str
    baseline: float | None
    compared: float | None
    difference: float | None


def class_rows(
    scores: Mapping[str, StageScore], class_names: Sequence[str], baseline: str, compared: str
) -> list[ClassRow]:
    """A row for the background and for each class, at two stages that may be absent."""
    rows = []
    for name in ("background", *class_names):
        one, two = (
            scores[stage].per_class.get(name) if stage in scores else None
            for stage in (baseline, compared)
        )
        rows.append(ClassRow(name, one, two, None if one is None or two is None else two - one))
    return rows


def sweep_rows(scores: Mapping[str, StageScore]) -> list[tuple[float, ...]]:
    """The threshold and each stage's mIoU there.

    Raises:
        WsssError: stages that were swept over different thresholds.
    """
    swept = {tuple(t for t, _ in score.curve) for score in scores.values()}
    if len(swept) > 1:
        raise WsssError("Expected one sweep of thresholds for all stages, found several.")
    return [
        (t, *(score.curve[n][1] for score in scores.values()))
        for thresholds in swept
        for n, t in enumerate(thresholds)
    ]


def _stage_score(found: Any) -> StageScore:
    curve = tuple((_fraction(t), _fraction(miou)) for t, miou in found["curve"])
    if len(curve) < 2 or list(curve) != sorted(curve, key=lambda point: point[0]):
        raise ValueError("its curve does not ascend")
    return StageScore(
        miou=_fraction(found["miou"]),
        threshold=_fraction(found["threshold"]),
        fp=_fraction(found["fp"]),
        fn=_fraction(found["fn"]),
        per_class={str(name): _fraction(iou) for name, iou in found["per_class"].items()},
        curve=curve,
        images=int(found["images"]),
    )


def _fraction(value: Any) -> float:
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{str(value)[:40]!r} is not between 0 and 1")
    return float(value)
