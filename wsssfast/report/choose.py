"""Which images to show: asked for by id, or the best, the middle and the worst ones."""

from collections.abc import Sequence
from dataclasses import dataclass

from wsssfast.data.dataset import Dataset
from wsssfast.errors import BadFile, WsssError, listing
from wsssfast.evaluate import CamScorer
from wsssfast.shards.reader import CamShards

MOST_RANKED = 500  # images, evenly spread over the shards


@dataclass(frozen=True)
class Choice:
    """An image to show.

    Attributes:
        id: of the shards.
        iou: its mean IoU over the classes in its mask or prediction; None: not measured.
        why: what it stands for; may be empty.
    """

    id: str
    iou: float | None = None
    why: str = ""


def require_ids(shards: CamShards, ids: Sequence[str]) -> None:
    """Refuse ids that the shards do not know.

    Raises:
        WsssError: they neither hold them nor list them as unreadable.
    """
    known = {*shards.ids, *shards.failed}
    unknown = [i for i in ids if i not in known]
    if unknown:
        raise WsssError(
            f"Expected ids of images of the shards in {shards.folder}, found {listing(unknown)}.",
            "Check --ids.",
        )


def choose(
    shards: CamShards,
    dataset: Dataset,
    stage: str,
    threshold: float | None,
    count: int,
    ids: Sequence[str],
    failed: dict[str, str],
) -> list[Choice]:
    """The images to show.

    Args:
        shards: of `dataset`.
        dataset: whose masks rank the images.
        stage: that ranks them.
        threshold: of that stage; None: nothing is ranked, images are spread evenly.
        count: how many to show, where no ids are given.
        ids: to show instead.
        failed: gets id -> reason of masks that cannot be read.
    """

    def measured(image_id: str) -> Choice:
        if threshold is None:
            return Choice(image_id)
        try:
            iou = _image_iou(shards, dataset, image_id, stage, threshold)
        except (BadFile, WsssError) as error:
            failed[image_id] = f"mask: {error}"
            return Choice(image_id)
        return Choice(image_id, iou)

    if ids:
        known = [i for i in dict.fromkeys(ids) if i not in shards.failed]
        return [measured(image_id) for image_id in known]
    candidates = [i for i in _spread(shards.ids, MOST_RANKED) if len(shards.labels(i))]
    ranked = [c for c in map(measured, candidates) if c.iou is not None]
    if not ranked:
        return [Choice(i) for i in _spread(candidates, count)]
    ranked.sort(key=lambda choice: (-(choice.iou or 0.0), choice.id))
    count = min(count, len(ranked))
    high, low = -(-count // 3), count // 3
    between = ranked[high : len(ranked) - low]
    start = (len(between) - (count - high - low)) // 2
    groups = {
        "among the highest": ranked[:high],
        "around the middle": between[start : start + count - high - low],
        "among the lowest": ranked[len(ranked) - low :],
    }
    return [Choice(c.id, c.iou, why) for why, group in groups.items() for c in group]


def _image_iou(
    shards: CamShards, dataset: Dataset, image_id: str, stage: str, threshold: float
) -> float | None:
    mask = dataset.load_mask(dataset.by_id[image_id])
    if mask is None:
        return None
    scorer = CamScorer(shards.class_names, [threshold])
    scorer.add(*shards.cam(image_id, stage), mask)
    return float(scorer.result()["miou"])


def _spread(ids: Sequence[str], count: int) -> list[str]:
    """At most `count` of the ids, evenly spread, in their order."""
    if len(ids) <= count:
        return list(ids)
    return [ids[n * len(ids) // count] for n in range(count)]
