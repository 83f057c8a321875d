"""Score predicted masks: IoU, accuracies, confusion, and the IoU of boundaries."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_cdt

from wsssfast.data.dataset import IGNORE, Dataset, Mask, odd_values
from wsssfast.data.images import read_mask
from wsssfast.errors import BadFile, WsssError, listing
from wsssfast.evaluate.labels import LabelScorer
from wsssfast.evaluate.masks import Masks
from wsssfast.evaluate.scores import mean_of
from wsssfast.shards.format import kinds_in
from wsssfast.shards.label_shards import LabelShards

_BAND = 0.02  # of the image's diagonal (Cheng et al., 2021)


class PngMasks:
    """A folder of palette or grey PNG masks `<id>.png`, read as label shards are.

    Args:
        folder: where they lie.
        dataset: whose classes they have; masks of images that it does not hold are left out.

    Attributes:
        ids: of the masks.
        failed: none, as what cannot be read is found when it is scored.

    Raises:
        WsssError: no masks of the data set's images.
    """

    missing_shards: tuple[int, ...] = ()
    missing_names: tuple[str, ...] = ()

    def __init__(self, folder: Path, dataset: Dataset) -> None:
        self.folder, self.class_names = folder, dataset.class_names
        found = {path.stem for path in folder.glob("*.png")} if folder.is_dir() else set()
        self.ids = tuple(sorted(found & dataset.by_id.keys()))
        self.failed: dict[str, str] = {}
        if not self.ids:
            raise WsssError(
                f"Expected label shards or PNG masks of the data set's images in {folder}, found "
                f"{len(found) or 'none'}{' others' if found else ''}.",
                "Give the folder of `predict`, or one of files named after the images.",
            )

    def mask(self, image_id: str) -> Mask:
        """The mask uint8 [H, W]. Raises BadFile."""
        return read_mask(self.folder / f"{image_id}.png")


Predicted = LabelShards | PngMasks


def open_predicted(folder: Path, dataset: Dataset) -> Predicted:
    """Label shards where there are any, else PNG masks."""
    return LabelShards(folder) if "labels" in kinds_in(folder) else PngMasks(folder, dataset)


class BoundaryScorer:
    """IoU of the bands along the inner side of each class's contour (Boundary IoU).

    The band is 2 % of the image's diagonal wide, and at least one pixel. Where the truth is 255,
    contours are those of the prediction, and nothing is counted.

    Args:
        classes: how many with the background, which has no band of its own.
    """

    def __init__(self, classes: int) -> None:
        self._both, self._either = (np.zeros(classes, np.int64) for _ in range(2))

    def add(self, predicted: Mask, mask: Mask) -> None:
        """Count one image; arguments as of `LabelScorer.add`."""
        known = mask != IGNORE
        filled = np.where(known, mask, predicted)
        width = max(1, round(_BAND * math.hypot(*mask.shape)))
        for c in np.union1d(np.unique(filled[known]), np.unique(predicted[known])).tolist():
            if not 0 < c < len(self._both):
                continue
            one, other = (band(values == c, width) & known for values in (predicted, filled))
            self._both[c] += np.count_nonzero(one & other)
            self._either[c] += np.count_nonzero(one | other)

    def result(self, names: Sequence[str]) -> dict[str, float]:
        """IoU of each class that occurs; `names` begin with the background."""
        return {
            name: int(self._both[c]) / int(self._either[c])
            for c, name in enumerate(names)
            if self._either[c]
        }


def band(region: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Pixels of a region within `width` steps, diagonal ones too, of what is not region."""
    rows, columns = (np.flatnonzero(region.any(axis)) for axis in (1, 0))
    if not len(rows):
        return region
    part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    distance = distance_transform_cdt(np.pad(region[part], 1), "chessboard")[1:-1, 1:-1]
    found = np.zeros_like(region)
    found[part] = region[part] & (distance <= width)
    return found


@dataclass(frozen=True)
class ImageScore:
    """One image's mean IoU over the classes in its truth or prediction."""

    id: str
    miou: float


def evaluate_segmentation(
    predicted: Predicted,
    dataset: Dataset,
    classes: Sequence[str] = (),
    progress: Callable[[int], None] = lambda images: None,
) -> tuple[dict[str, Any], list[ImageScore], dict[str, str]]:
    """Score predicted masks against a data set's; pixels predicted as 255 count as background.

    Args:
        predicted: what to score.
        dataset: whose masks to score against; must hold every image of the shards.
        classes: names to take means over, with the background; all where empty. Pixels of others
            count as they are: as false positives and negatives of these.
        progress: called with 1 for each image.

    Returns:
        The scores as JSON-ready values: those of `LabelScorer` for the chosen classes,
        pixel_accuracy, mean_accuracy, per_class_accuracy, boundary_miou and per_class_boundary
        (without the background), confusion [C + 1][C + 1] by true and predicted class; per image
        its mean IoU; and id -> reason of images that could not be scored.

    Raises:
        WsssError: shards of another data set, unknown classes, odd values in a true mask, or no
            prediction that can be scored.
    """
    names = ("background", *dataset.class_names)
    unknown = [name for name in classes if name not in dataset.class_names]
    if unknown:
        raise WsssError(
            f"Expected classes of the data set, found {listing(unknown)}.",
            f"It has {', '.join(dataset.class_names)}.",
        )
    kept = {"background", *(classes or dataset.class_names)}
    chosen = [c for c, name in enumerate(names) if name in kept]
    scorer, boundaries = LabelScorer(dataset.class_names), BoundaryScorer(len(names))
    images: list[ImageScore] = []
    masks = Masks(predicted, dataset, progress)
    for image_id, mask in masks:
        with masks.scoring(image_id, BadFile, "prediction: "):
            found = _fitting(predicted.mask(image_id), mask, len(names))
        if image_id in masks.failed:
            continue
        with masks.scoring(image_id):
            one = LabelScorer(dataset.class_names)
            one.add(found, mask)
            boundaries.add(np.where(found == IGNORE, 0, found), mask)
            scorer.merge(one)
            images.append(ImageScore(image_id, float(one.result()["miou"])))
    confusion = scorer.confusion()
    result = scorer.result()
    for key in ("per_class", "per_class_fp", "per_class_fn"):
        result[key] = {k: v for k, v in result[key].items() if k in kept}
    for key, source in (("miou", "per_class"), ("fp", "per_class_fp"), ("fn", "per_class_fn")):
        result[key] = mean_of(result[source])
    result["absent_classes"] = [name for name in result["absent_classes"] if name in kept]
    true = confusion.sum(1)
    accuracy = {names[c]: int(confusion[c, c]) / int(true[c]) for c in chosen if true[c]}
    edges = {name: iou for name, iou in boundaries.result(names).items() if name in kept}
    total = int(true[chosen].sum())
    result |= {
        "classes": [names[c] for c in chosen],
        "pixel_accuracy": int(confusion.diagonal()[chosen].sum()) / total if total else 0.0,
        "mean_accuracy": mean_of(accuracy),
        "per_class_accuracy": accuracy,
        "boundary_miou": mean_of(edges),
        "per_class_boundary": edges,
        "confusion": confusion.tolist(),
        "class_names": list(names),
    }
    return {**result, **masks.facts()}, images, masks.failed


def _fitting(found: Mask, mask: Mask, values: int) -> Mask:
    """A prediction that can be compared with the true mask.

    Raises:
        BadFile: of another size, or with values that are no class.
    """
    if found.shape != mask.shape:
        raise BadFile(
            f"{found.shape[1]}x{found.shape[0]} pixels, the true mask has "
            f"{mask.shape[1]}x{mask.shape[0]}"
        )
    odd = odd_values(found, values - 1)
    if odd.size:
        raise BadFile(f"values up to {values - 1} and 255 expected, found {odd[0]}")
    return found
