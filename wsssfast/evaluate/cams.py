"""Score CAM shards.

The field's protocol (method §6): a constant background score t, argmax with ties to background,
t from 0.00 to 0.59; IoU = TP / (T + P - TP) per class, accumulated over the set; pixels of value
255 do not count; a class with T + P = 0 is left out of the mean and listed.
"""

from collections.abc import Callable, Sequence
from typing import Any

from wsssfast.data.dataset import Dataset
from wsssfast.evaluate.cam_scorer import CamScorer
from wsssfast.evaluate.masks import Masks, require_kind
from wsssfast.shards.reader import CamShards


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
        stage -> result of `CamScorer` and `Masks.facts`, and id -> reason of images that could not
        be scored. Images of shards that are missing are in neither: the result's `missing_shards`
        has the shards' numbers, and `shards.missing_names` their names.

    Raises:
        WsssError: shards of another kind or data set, no masks, or a mask that does not fit its
            image.
    """
    require_kind(shards, CamShards)
    scorers = {stage: CamScorer(shards.class_names) for stage in stages}
    masks = Masks(shards, dataset, progress)
    for image_id, mask in masks:
        for stage, scorer in scorers.items():
            labels, maps = shards.cam(image_id, stage)
            with masks.scoring(image_id):
                scorer.add(labels, maps, mask)
            if image_id in masks.failed:
                break
    results = {stage: {**scorer.result(), **masks.facts()} for stage, scorer in scorers.items()}
    return results, masks.failed
