"""What a dense CRF did to the pseudo-labels: their masks and scores before and after."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from wsssfast.data.dataset import Dataset, Mask
from wsssfast.evaluate.labels import LabelScorer
from wsssfast.evaluate.masks import Masks, naming
from wsssfast.label_options import LabelOptions, options_of
from wsssfast.pseudo_labels import pseudo_labels
from wsssfast.shards.label_shards import LabelShards
from wsssfast.shards.reader import CamShards


@dataclass(frozen=True)
class LabelScore:
    """Scores of pseudo-labels over all images that have a mask; fractions.

    Attributes:
        name: which pseudo-labels.
        miou: mean IoU over the classes that occur; ignored pixels count as background.
        fp: mean over the classes of false positives over the union.
        fn: mean over the classes of false negatives over the union.
        coverage: share of pixels that are not ignored.
    """

    name: str
    miou: float
    fp: float
    fn: float
    coverage: float


def before_crf(shards: CamShards, labels: LabelShards) -> LabelOptions | None:
    """Options of the masks that label shards would hold without their CRF.

    Args:
        shards: CAMs.
        labels: of those CAMs.

    Returns:
        None where there was no CRF, or the shards lack the stage.
    """
    options = options_of(labels.identity)
    if options is None or options.refine == "none" or options.stage not in shards.stages:
        return None
    return replace(options, refine="none", certainty=None)


def unrefined(shards: CamShards, image_id: str, options: LabelOptions) -> Mask:
    """The mask of an image by its scores alone."""
    classes, cam = shards.cam(image_id, options.stage)
    return pseudo_labels([torch.from_numpy(cam)], [classes.tolist()], [None], options)[0]


def label_scores(
    shards: CamShards,
    labels: LabelShards,
    dataset: Dataset,
    progress: Callable[[int], None],
    failed: dict[str, str],
) -> list[LabelScore]:
    """Score label shards, and before that what they were made from.

    Args:
        shards: CAMs.
        labels: of those CAMs.
        dataset: whose masks to score against.
        progress: called with 1 for each image.
        failed: gets id -> reason of what cannot be read.

    Returns:
        None, one or two; none where the data set has no masks.
    """
    options = before_crf(shards, labels)
    before, after = LabelScorer(labels.class_names), LabelScorer(labels.class_names)
    masks = Masks(labels, dataset, progress)
    seen = 0
    for image_id, mask in masks:
        seen += 1
        with naming(image_id):
            after.add(labels.mask(image_id), mask)
            if options and image_id in shards.ids:
                before.add(unrefined(shards, image_id, options), mask)
    failed.update(masks.failed)
    found = [("before the CRF", before)] if options else []
    name = "after the CRF" if options else "pseudo-labels"
    return [_score(told, scorer) for told, scorer in [*found, (name, after)] if seen]


def _score(name: str, scorer: LabelScorer) -> LabelScore:
    result = scorer.result()
    return LabelScore(name, *(result[key] for key in ("miou", "fp", "fn", "coverage")))
