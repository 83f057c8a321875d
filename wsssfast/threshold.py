"""From CAM to mask by a constant background score (method §6)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsssfast.data.dataset import IGNORE, Mask
from wsssfast.errors import WsssError


def one_or_two(values: tuple[float, ...]) -> bool:
    """Whether there is one value, or two of which the first is the lower."""
    return len(values) in (1, 2) and values[0] < (*values, float("inf"))[1]


def background_scores(given: Any) -> tuple[float, ...]:
    """One background score or two, as `threshold` takes them.

    Args:
        given: a number in [0, 1], or one or two of them, the lower first.

    Raises:
        WsssError: anything else.
    """
    try:
        scores = tuple(map(float, given if isinstance(given, Sequence) else (given,)))
    except (TypeError, ValueError):
        scores = ()
    if not one_or_two(scores) or not all(0 <= score <= 1 for score in scores):
        raise WsssError(
            "Expected one background threshold in [0, 1], or two, the lower first, found "
            f"{','.join(f'{score:g}' for score in scores) or str(given)[:40]}."
        )
    return scores


def threshold(
    labels: NDArray[np.int64], maps: NDArray[np.float32], background: tuple[float, ...]
) -> Mask:
    """The class of the largest map where that is above the background score.

    Args:
        labels: [K] 0-based classes of the maps; no class makes all of it background.
        maps: [K, H, W]; the first of equal ones wins.
        background: one score: background where the largest map is at or below it. Two, low < high:
            background at or below low, the class above high, 255 (ignore) between.

    Returns:
        uint8 [H, W]: 0 background, class + 1, 255 ignore.
    """
    if len(labels) == 0:
        return np.zeros(maps.shape[1:], np.uint8)
    low, high = np.float32(background[0]), np.float32(background[-1])  # as CamScorer compares
    score, mask = maps[0], np.full(maps.shape[1:], labels[0] + 1, np.uint8)
    for label, values in zip(labels[1:].tolist(), maps[1:], strict=True):
        mask[values > score] = label + 1  # a tenth of the time of argmax over the first axis
        score = np.maximum(score, values)
    mask[score <= high] = IGNORE
    mask[score <= low] = 0
    return mask
