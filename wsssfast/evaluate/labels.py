"""Score label shards: one confusion matrix in 64-bit counts (method §6)."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wsssfast.data.dataset import IGNORE, Dataset, Mask
from wsssfast.errors import WsssError
from wsssfast.evaluate.masks import Masks, require_kind
from wsssfast.evaluate.scores import scores
from wsssfast.shards.label_shards import LabelShards
from wsssfast.shards.require import as_mask

Ignored = Literal["background", "skip"]


class LabelScorer:
    """Counts of predicted masks over a set of images.

    Args:
        class_names: the C foreground classes.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = ("background", *class_names)
        # true class by predicted class; the last column is what was predicted as 255
        self._seen = np.zeros((len(self.class_names), len(self.class_names) + 1), np.int64)

    def add(self, predicted: Mask, mask: Mask) -> None:
        """Count one image.

        Args:
            predicted: [H, W] with 0 background, 1..C, 255 ignored.
            mask: the truth, of the same size and values; what is 255 in it does not count.

        Raises:
            WsssError: a mask of another size, or with values that are no class.
        """
        predicted, mask = as_mask(predicted, "a predicted mask"), as_mask(mask)
        if predicted.shape != mask.shape:
            raise WsssError(
                f"Expected a mask of the image's size {list(predicted.shape)}, found "
                f"{list(mask.shape)} (height, width)."
            )
        pairs = mask.ravel().astype(np.int64) * 256 + predicted.ravel()
        counts = np.bincount(pairs, minlength=256 * 256).reshape(256, 256)
        classes = len(self.class_names)
        odd = np.flatnonzero((counts.sum(1) + counts.sum(0))[classes:IGNORE])
        if odd.size:
            raise WsssError(
                f"Expected mask values up to {classes - 1} and 255, found {classes + odd[-1]}."
            )
        self._seen[:, :-1] += counts[:classes, :classes]
        self._seen[:, -1] += counts[:classes, IGNORE]

    def merge(self, other: "LabelScorer") -> None:
        """Add the counts of another scorer of the same classes."""
        self._seen += other._seen

    def confusion(self, ignored: Ignored = "background") -> NDArray[np.int64]:
        """Pixels [C + 1, C + 1] of each true class by predicted class.

        Args:
            ignored: whether pixels predicted as 255 count as background, or are left out.
        """
        seen = self._seen[:, :-1].copy()
        if ignored == "background":
            seen[:, 0] += self._seen[:, -1]
        return seen

    def result(self, ignored: Ignored = "background") -> dict[str, Any]:
        """The scores as JSON-ready values; mIoU, rates and coverage are fractions.

        Args:
            ignored: as in `confusion`.
        """
        seen = self.confusion(ignored)
        total = int(self._seen.sum())
        return {
            **scores(seen.sum(1), seen.sum(0), seen.diagonal(), names=self.class_names),
            "ignored": ignored,
            "coverage": int(self._seen[:, :-1].sum()) / total if total else 0.0,
        }


def evaluate_labels(
    shards: LabelShards,
    dataset: Dataset,
    ignored: Ignored = "background",
    progress: Callable[[int], None] = lambda images: None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Score label shards against a data set's masks.

    Args:
        shards: what to score.
        dataset: whose masks to score against; must hold every image of the shards.
        ignored: as in `LabelScorer.result`.
        progress: called with 1 for each image.

    Returns:
        The result of `LabelScorer` and `Masks.facts`, and id -> reason of images that could not be
        scored. Images of shards that are missing are in neither: the result's `missing_shards` has
        the shards' numbers, and `shards.missing_names` their names.

    Raises:
        WsssError: shards of another kind or data set, no masks, or a mask that does not fit its
            image.
    """
    require_kind(shards, LabelShards)
    scorer = LabelScorer(shards.class_names)
    masks = Masks(shards, dataset, progress)
    for image_id, mask in masks:
        predicted = shards.mask(image_id)
        with masks.scoring(image_id):
            scorer.add(predicted, mask)
    return {**scorer.result(ignored), **masks.facts()}, masks.failed
