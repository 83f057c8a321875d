"""Count CAMs against masks: the whole threshold sweep from one look at each pixel."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsssfast.data.dataset import IGNORE, Mask
from wsssfast.errors import WsssError
from wsssfast.evaluate.scores import Counts, scores
from wsssfast.shards.require import as_mask

THRESHOLDS = tuple(step / 100 for step in range(60))
_BINS = 4096  # of [0, 1]; a power of two, so that a value's bin is exact


@dataclass(frozen=True)
class Truth:
    """What a mask says of one image's pixels, made once for any number of scorers.

    Attributes:
        labels: int64 [K], 0-based classes of the image's maps.
        size: (height, width).
        totals: int64 [C + 1], counted pixels of each class, background first.
        codes: int64 [H * W]: k where the pixel is of class labels[k], K background, K + 1 another
            class, K + 2 not counted.
    """

    labels: NDArray[np.int64]
    size: tuple[int, int]
    totals: Counts
    codes: NDArray[np.int64]

    @classmethod
    def of(cls, mask: Mask, labels: NDArray[np.int64], classes: int) -> "Truth":
        """From a mask [H, W] with 0 background, 1..C, 255 ignored.

        Raises:
            WsssError: values that are neither class nor 255, or labels that are no class or not
                each once.
        """
        mask, known = as_mask(mask), set(labels.tolist())
        if len(known) < len(labels) or not known <= set(range(classes)):
            raise WsssError(
                f"Expected labels from 0 to {classes - 1}, each once, found {labels.tolist()}."
            )
        totals = np.bincount(mask.ravel(), minlength=256)
        odd = np.flatnonzero(totals[classes + 1 : IGNORE])
        if odd.size:
            raise WsssError(
                f"Expected mask values up to {classes} and 255, found {classes + 1 + odd[-1]}."
            )
        count = len(labels)
        code_of = np.full(256, count + 1, np.int64)
        code_of[0], code_of[IGNORE] = count, count + 2
        code_of[labels + 1] = np.arange(count)
        height, width = mask.shape
        return cls(labels, (height, width), totals[: classes + 1], code_of[mask.ravel()])


class CamScorer:
    """Counts of one stage over a set of images.

    Args:
        class_names: the C foreground classes.
        thresholds: ascending background scores in [0, 1] to sweep, at least 1/2048 apart.

    Attributes:
        truth: int64 [C + 1], counted pixels of each class in the masks, background first.
        seen: int64 [3, C, levels], pixels per class and number of thresholds passed: predicted, of
            these right, of these background.
        images: how many were counted.
    """

    def __init__(
        self, class_names: Sequence[str], thresholds: Sequence[float] = THRESHOLDS
    ) -> None:
        self.class_names = ("background", *class_names)
        self.thresholds = tuple(thresholds)
        cuts = np.array(thresholds, dtype=np.float32)
        edges = np.arange(_BINS + 1, dtype=np.float32) / _BINS
        # a bin holds one cut at most: what lies below it is passed, it itself is compared with
        self._passed = np.searchsorted(cuts, edges, side="left").astype(np.int64)
        self._next = np.append(cuts, np.float32(np.inf))[self._passed]
        if (np.diff(cuts) < 2 / _BINS).any():
            raise ValueError(f"expected thresholds at least {2 / _BINS} apart")
        classes, levels = len(class_names), len(thresholds) + 1
        self.truth = np.zeros(classes + 1, np.int64)
        self.seen = np.zeros((3, classes, levels), np.int64)
        self.images = 0

    def add(self, labels: NDArray[np.int64], maps: NDArray[np.float32], mask: Mask) -> None:
        """Count one image.

        Args:
            labels: [K] 0-based classes of the maps; every other class scores nothing.
            maps: [K, H, W] in [0, 1].
            mask: [H, W] with 0 background, 1..C, 255 ignored.

        Raises:
            WsssError: a mask of another size, or with values that are no class; labels that are no
                class; maps of other labels, or with values outside [0, 1].
        """
        self.add_truth(Truth.of(mask, labels, len(self.class_names) - 1), maps)

    def add_truth(self, truth: Truth, maps: NDArray[np.float32]) -> None:
        """Count one image, of whose mask several scorers share the truth.

        Args:
            truth: of its mask; its labels are the classes of the maps, every other class scores
                nothing.
            maps: [K, H, W] in [0, 1].

        Raises:
            WsssError: maps of another size than the mask or of other labels, or with values outside
                [0, 1].
        """
        if maps.shape[1:] != truth.size:
            raise WsssError(
                f"Expected a mask of the image's size {list(maps.shape[1:])}, found "
                f"{list(truth.size)} (height, width)."
            )
        if len(maps) != len(truth.labels):
            raise WsssError(f"Expected maps of {len(truth.labels)} labels, found {len(maps)}.")
        if len(maps):
            self._see(truth, maps.reshape(len(maps), -1))
        self.truth += truth.totals
        self.images += 1

    def _see(self, truth: Truth, flat: NDArray[np.float32]) -> None:
        """Count the pixels of maps [K, H * W], K > 0."""
        count = len(flat)
        value, slot = flat[0], np.zeros(flat.shape[1], np.int64)
        for k in range(1, count):  # the first of equal maxima wins, as argmax has it
            higher = flat[k] > value
            slot[higher] = k
            value = np.maximum(value, flat[k])
        low, high = value.min(), value.max()
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise WsssError(
                f"Expected maps of values in [0, 1], found {low:.3g} to {high:.3g}.",
                "Divide each by its maximum, or mend what made it.",
            )
        levels, codes = self.seen.shape[2], count + 3
        bins = (value * np.float32(_BINS)).astype(np.int64)
        # a threshold is passed when it is below the value: ties go to background
        slot *= levels
        slot += self._passed[bins]
        slot += value > self._next[bins]
        slot *= codes
        slot += truth.codes
        found = np.bincount(slot, minlength=count * levels * codes).reshape(count, levels, codes)
        own = np.arange(count)
        self.seen[0, truth.labels] += found[:, :, : count + 2].sum(-1)
        self.seen[1, truth.labels] += found[own, :, own]
        self.seen[2, truth.labels] += found[:, :, count]

    def counts(self, threshold_index: int) -> tuple[Counts, Counts, Counts]:
        """T (truth), P (predicted) and TP per class, background first, at one threshold."""
        predicted, right, background = self.seen[:, :, threshold_index + 1 :].sum(-1)
        total = self.truth.sum()
        p = np.concatenate([[total - predicted.sum()], predicted])
        tp = np.concatenate([[self.truth[0] - background.sum()], right])
        return self.truth, p, tp

    def result(self) -> dict[str, Any]:
        """The sweep's scores as JSON-ready values; mIoU and rates are fractions."""
        curve = [scores(*self.counts(n))["miou"] for n in range(len(self.thresholds))]
        best = int(np.argmax(curve))
        return {
            **scores(*self.counts(best), names=self.class_names),
            "threshold": self.thresholds[best],
            "curve": [[t, miou] for t, miou in zip(self.thresholds, curve, strict=True)],
            "images": self.images,
        }
