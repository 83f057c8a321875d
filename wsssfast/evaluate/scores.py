"""Mean IoU and the rates of false positives and negatives from 64-bit counts (method §6)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]


def scores(t: Counts, p: Counts, tp: Counts, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Mean IoU and the rates of false positives and negatives from counts.

    Args:
        t: pixels of each class in truth.
        p: pixels predicted as each class.
        tp: pixels that are both.
        names: of the classes, for the parts that are told per class.

    Returns:
        miou, fp, fn (means over the classes that occur, of counts over the union) and, with names,
        per_class, per_class_fp, per_class_fn and absent_classes.
    """
    union = (t + p - tp).tolist()
    occurs = [n for n, u in enumerate(union) if u]
    iou = {n: int(tp[n]) / union[n] for n in occurs}
    fp = {n: int(p[n] - tp[n]) / union[n] for n in occurs}
    fn = {n: int(t[n] - tp[n]) / union[n] for n in occurs}
    found: dict[str, Any] = {"miou": mean_of(iou), "fp": mean_of(fp), "fn": mean_of(fn)}
    if names is not None:
        for key, values in (("per_class", iou), ("per_class_fp", fp), ("per_class_fn", fn)):
            found[key] = {names[n]: values[n] for n in occurs}
        found["absent_classes"] = [name for n, name in enumerate(names) if n not in iou]
    return found


def mean_of(values: Mapping[Any, float]) -> float:
    """Correctly rounded sum over the count: the same whatever the order."""
    return math.fsum(values.values()) / len(values) if values else 0.0
