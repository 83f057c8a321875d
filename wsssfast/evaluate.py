"""Score CAMs: the whole threshold sweep, in 64-bit counts, from one look at each pixel.

The field's protocol (method §6): a constant background score t, argmax with ties to background,
t from 0.00 to 0.59; IoU = TP / (T + P - TP) per class, accumulated over the set; pixels of value
255 do not count; a class with T + P = 0 is left out of the mean and listed.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsssfast.data.dataset import IGNORE, Dataset, Mask
from wsssfast.errors import BadFile, WsssError, listing
from wsssfast.shards.reader import CamShards

THRESHOLDS = tuple(step / 100 for step in range(60))
Counts = NDArray[np.int64]


class CamScorer:
    """Counts of one stage over a set of images.

    Args:
        class_names: the C foreground classes.
        thresholds: ascending background scores to sweep.
    """

    def __init__(
        self, class_names: Sequence[str], thresholds: Sequence[float] = THRESHOLDS
    ) -> None:
        self.class_names = ("background", *class_names)
        self.thresholds = tuple(thresholds)
        self._cuts = np.array(thresholds, dtype=np.float32)
        classes, levels = len(class_names), len(thresholds) + 1
        self._truth = np.zeros(classes + 1, np.int64)
        # per class and number of thresholds passed: predicted, of these right, of these background
        self._seen = np.zeros((3, classes, levels), np.int64)
        self.images = 0

    def add(self, labels: NDArray[np.int64], maps: NDArray[np.float32], mask: Mask) -> None:
        """Count one image.

        Args:
            labels: [K] 0-based classes of the maps; every other class scores nothing.
            maps: [K, H, W] in [0, 1].
            mask: [H, W] with 0 background, 1..C, 255 ignored.

        Raises:
            WsssError: a mask of another size, or with values that are no class.
        """
        if maps.shape[1:] != mask.shape:
            raise WsssError(
                f"Expected a mask of the image's size {list(maps.shape[1:])}, found "
                f"{list(mask.shape)} (height, width)."
            )
        counted = mask != IGNORE
        truth = mask[counted].astype(np.int64)
        if truth.size and truth.max() >= len(self.class_names):
            most = len(self.class_names) - 1
            raise WsssError(f"Expected mask values up to {most} and 255, found {truth.max()}.")
        self._truth += np.bincount(truth, minlength=len(self.class_names))
        self.images += 1
        if len(labels) == 0:
            return
        best = maps.argmax(0)[counted]
        # a threshold is passed when it is below the value: ties go to background
        level = np.searchsorted(self._cuts, maps.max(0)[counted], side="left")
        levels = self._seen.shape[2]
        slot = best * levels + level
        size = len(labels) * levels
        right = truth == labels[best] + 1
        for row, chosen in enumerate((slot, slot[right], slot[truth == 0])):
            counts = np.bincount(chosen, minlength=size).reshape(-1, levels)
            self._seen[row, labels] += counts

    def counts(self, threshold_index: int) -> tuple[Counts, Counts, Counts]:
        """T (truth), P (predicted) and TP per class, background first, at one threshold."""
        predicted, right, background = self._seen[:, :, threshold_index + 1 :].sum(-1)
        total = self._truth.sum()
        p = np.concatenate([[total - predicted.sum()], predicted])
        tp = np.concatenate([[self._truth[0] - background.sum()], right])
        return self._truth, p, tp

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
    found: dict[str, Any] = {"miou": _mean(iou), "fp": _mean(fp), "fn": _mean(fn)}
    if names is not None:
        for key, values in (("per_class", iou), ("per_class_fp", fp), ("per_class_fn", fn)):
            found[key] = {names[n]: values[n] for n in occurs}
        found["absent_classes"] = [name for n, name in enumerate(names) if n not in iou]
    return found


def evaluate_cams(
    shards: CamShards,
    dataset: Dataset,
    stages: Sequence[str],
    progress: Callable[[int], None] = lambda images: None,
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Score stages of CAM shards against a data set's masks.

    Args:
        shards: what to score.
        dataset: whose masks to score against; must hold every image of the shards.
        stages: of the shards.
        progress: called with 1 for each image.

    Returns:
        stage -> result of `CamScorer`, and id -> reason of images that could not be scored.

    Raises:
        WsssError: shards of another data set, no masks, or a mask that does not fit its image.
    """
    if shards.class_names != dataset.class_names:
        raise WsssError(
            f"Expected shards of the data set's {len(dataset.class_names)} classes, found "
            f"{len(shards.class_names)} others in {shards.folder}.",
            "Name the data set that the shards were exported from.",
        )
    unknown = [i for i in shards.ids if i not in dataset.by_id]
    if unknown:
        raise WsssError(
            f"Expected shards of images of this data set, found {listing(unknown)}.",
            "Give the --data-root and --split that the shards were exported from.",
        )
    scorers = {stage: CamScorer(shards.class_names) for stage in stages}
    failed = dict(shards.failed)
    unmasked = 0
    for image_id in shards:
        try:
            mask = dataset.load_mask(dataset.by_id[image_id])
        except BadFile as error:
            failed[image_id] = f"mask: {error}"
            mask = None
        else:
            unmasked += mask is None
        if mask is not None:
            for stage, scorer in scorers.items():
                labels, maps = shards.cam(image_id, stage)
                try:
                    scorer.add(labels, maps, mask)
                except WsssError as error:
                    raise WsssError(f"{image_id}: {error.message}", "Mend the mask.") from error
        progress(1)
    if not any(scorer.images for scorer in scorers.values()):
        raise WsssError(
            f"Expected masks to score against, found none for {len(shards)} images.",
            "Scoring needs a data set with masks.",
        )
    results = {stage: scorer.result() for stage, scorer in scorers.items()}
    for result in results.values():
        result["images_without_mask"] = unmasked
        result["images_of_split"] = len(dataset)
        result["missing_shards"] = shards.missing_shards
    return results, failed


def _mean(values: dict[int, float]) -> float:
    """Correctly rounded sum over the count: the same whatever the order."""
    return math.fsum(values.values()) / len(values) if values else 0.0
