"""One HTML page of predicted masks: scores, confusions, the best and the worst images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsssfast.data.dataset import Dataset
from wsssfast.errors import BadFile
from wsssfast.evaluate.segmentation import ImageScore, Predicted
from wsssfast.report.page import write_page
from wsssfast.report.pictures import Picture, legend, mask_picture, thumbnail

_MOST_CONFUSED = 12  # pairs of classes


@dataclass(frozen=True)
class Shown:
    """An image of the page.

    Attributes:
        id: of the image.
        miou: its own, over the classes in its truth or prediction.
        why: what it stands for.
        pictures: the image, its prediction and its ground truth.
        legend: (name, colour) of the values in both masks.
    """

    id: str
    miou: float
    why: str
    pictures: list[Picture]
    legend: list[tuple[str, str]]


def write_segmentation_report(
    out: Path,
    predicted: Predicted,
    dataset: Dataset,
    scores: Mapping[str, Any],
    images: Sequence[ImageScore],
    failed: dict[str, str],
    count: int,
) -> tuple[str, ...]:
    """Write one self-contained HTML file; equal input gives an equal file.

    Args:
        out: the file; its folder is made.
        predicted: masks.
        dataset: images and true masks.
        scores: of `evaluate_segmentation`, as are the two that follow.
        images: scores of images.
        failed: gets id -> reason of images that cannot be shown.
        count: how many images to show, half of them the best.

    Returns:
        The ids of the images shown.
    """
    ranked = sorted(images, key=lambda one: (-one.miou, one.id))
    best = ranked[: -(-count // 2)]
    worst = [one for one in ranked[len(ranked) - count // 2 :] if one not in best]
    shown = [
        found
        for why, group in (("among the highest", best), ("among the lowest", worst))
        for one in group
        if (found := _shown(predicted, dataset, one, why, failed))
    ]
    write_page(
        out,
        "segmentation.html",
        title=f"wsssfast: masks of {dataset.name}, split {dataset.split}",
        scores=scores,
        rows=_rows(scores),
        confused=_confused(scores),
        shown=shown,
        failed=list(failed.items()),
    )  # fmt: skip
    return tuple(one.id for one in shown)


def _rows(scores: Mapping[str, Any]) -> list[tuple[str, list[float | None]]]:
    """(class, its IoU, accuracy and boundary IoU), the worst IoU first."""
    tables = [scores[key] for key in ("per_class", "per_class_accuracy", "per_class_boundary")]
    names = sorted(tables[0], key=lambda name: (tables[0][name], name))
    return [(name, [table.get(name) for table in tables]) for name in names]


def _confused(scores: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """(true class, predicted class, share of the true one's pixels), the largest first."""
    names, found = scores["class_names"], []
    for true, row in enumerate(scores["confusion"]):
        total = sum(row)
        found += [
            (names[true], names[other], pixels / total)
            for other, pixels in enumerate(row)
            if other != true and pixels
        ]
    return sorted(found, key=lambda one: (-one[2], one[0], one[1]))[:_MOST_CONFUSED]


def _shown(
    predicted: Predicted, dataset: Dataset, one: ImageScore, why: str, failed: dict[str, str]
) -> Shown | None:
    item = dataset.by_id[one.id]
    try:
        photo = thumbnail(dataset.load_image(item))
        truth = dataset.load_mask(item)
        mask = predicted.mask(one.id)
    except BadFile as error:
        failed[one.id] = str(error)
        return None
    assert truth is not None
    pictures = [Picture.of(photo, "image", f"image {one.id}")]
    for values, told in ((mask, "prediction"), (truth, "ground truth")):
        pictures.append(Picture.of(mask_picture(values, photo.size), told, f"{told} of {one.id}"))
    found = set(np.unique(mask).tolist()) | set(np.unique(truth).tolist())
    return Shown(one.id, one.miou, why, pictures, legend(found, dataset.class_names))
