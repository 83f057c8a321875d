"""What walk and CRF did to the pseudo-labels: their masks and scores before and after."""

from dataclasses import dataclass, replace

import torch

from wsssfast.data.dataset import Dataset, Mask
from wsssfast.errors import BadFile, WsssError
from wsssfast.evaluate.labels import LabelScorer
from wsssfast.labels.options import LabelOptions, label_identity, options_of
from wsssfast.labels.rules import pseudo_labels
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


_NAMES = {"crf": "the CRF", "affinity": "the walk", "affinity+crf": "walk and CRF"}


def refinement(labels: LabelShards) -> str:
    """What refined the masks of label shards, in words."""
    return _NAMES.get(str(labels.identity.get("refine")), "refinement")


def before_refinement(shards: CamShards, labels: LabelShards) -> LabelOptions | None:
    """Options of the masks that label shards would hold without walk and CRF.

    Returns:
        None where there was neither, or the labels were made from other CAMs.
    """
    options = options_of(labels.identity)
    if options is None or options.refine == "none" or options.stage not in shards.stages:
        return None
    if label_identity(shards.identity, options) != labels.identity:
        return None
    return replace(options, refine="none", certainty=None, walk=None)


def unrefined(shards: CamShards, image_id: str, options: LabelOptions) -> Mask:
    """The mask of an image by its scores alone."""
    classes, cam = shards.cam(image_id, options.stage)
    return pseudo_labels([torch.from_numpy(cam)], [classes.tolist()], [None], options)[0]


def label_scores(
    shards: CamShards, labels: LabelShards, dataset: Dataset, failed: dict[str, str]
) -> list[LabelScore]:
    """Score label shards, and before that what they were made from, on the images of both.

    Args:
        shards: CAMs.
        labels: of their images.
        dataset: whose masks to score against.
        failed: gets id -> reason of masks that cannot be used.

    Returns:
        One or two; none where no image has a mask.
    """
    options = before_refinement(shards, labels)
    how = refinement(labels)
    names = (f"before {how}", f"after {how}") if options else ("pseudo-labels",)
    scorers = [LabelScorer(labels.class_names) for _ in names]
    scored = 0
    for image_id in sorted({*shards.ids} & {*labels.ids} & dataset.by_id.keys()):
        try:
            truth = dataset.load_mask(dataset.by_id[image_id])
            if truth is None:
                continue
            found = [labels.mask(image_id)]
            if options:
                found.insert(0, unrefined(shards, image_id, options))
            for scorer, mask in zip(scorers, found, strict=True):
                scorer.add(mask, truth)
        except (BadFile, WsssError) as error:
            failed[image_id] = f"mask: {error}"
        else:
            scored += 1
    if not scored:
        return []
    return [_score(name, scorer) for name, scorer in zip(names, scorers, strict=True)]


def _score(name: str, scorer: LabelScorer) -> LabelScore:
    result = scorer.result()
    return LabelScore(name, *(result[key] for key in ("miou", "fp", "fn", "coverage")))
