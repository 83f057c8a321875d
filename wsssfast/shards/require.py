"""What writers refuse: a reader would refuse it too, and take it for damage."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any, Protocol

import numpy as np

from wsssfast.data.dataset import IGNORE, Mask, require_safe_ids
from wsssfast.errors import WsssError, listing
from wsssfast.parse import json_of
from wsssfast.shards.format import MOST_PIXELS, MOST_SHARDS, canonical


class Record(Protocol):
    """What is stored of an image, whatever else a kind of shards adds to it."""

    @property
    def id(self) -> str:
        """Of the image."""

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""

    @property
    def labels(self) -> tuple[int, ...]:
        """Image-level labels: 0-based classes, sorted."""


def require_place(index: int, count: int) -> None:
    """Refuse a shard that is none of so many.

    Raises:
        WsssError: numbers that no shard has.
    """
    whole = isinstance(index, int) and isinstance(count, int)
    if not (whole and 0 <= index < count <= MOST_SHARDS):
        raise WsssError(
            f"Expected a shard's index from 0 and below the count, of up to {MOST_SHARDS:,}, found "
            f"index {index!r} and count {count!r}."
        )


def require_records(records: Sequence[Record], classes: int) -> None:
    """Refuse records that would not be read back.

    Args:
        records: of one shard.
        classes: C, how many there are.

    Raises:
        WsssError: ids that occur twice or are unfit for a file name, images of no pixels or too
            many, labels that are no class or do not ascend.
    """
    times = Counter(record.id for record in records)
    odd = [repr(image_id) for image_id in times if not isinstance(image_id, str)]
    if odd:
        raise WsssError(f"Expected image ids of text, found {listing(odd)}.")
    doubled = [image_id for image_id, count in times.items() if count > 1]
    if doubled:
        raise WsssError(f"Expected each image once in a shard, found more of {listing(doubled)}.")
    require_safe_ids(list(times))
    for record in records:
        size = record.image_size
        if len(size) != 2 or min(size) < 1 or prod(size) > MOST_PIXELS:
            raise WsssError(
                f"Expected a size (height, width) of 1 to {MOST_PIXELS} pixels of {record.id}, "
                f"found {tuple(size)}."
            )
        labels = record.labels
        known = all(isinstance(c, (int, np.integer)) and 0 <= c < classes for c in labels)
        if not known or any(a >= b for a, b in pairwise(labels)):
            raise WsssError(
                f"Expected ascending labels from 0 to {classes - 1} of {record.id}, found "
                f"{listing([str(c) for c in labels])}."
            )


def plain(what: str, given: dict[str, Any] | None) -> dict[str, Any]:
    """A dict as a sidecar gives it back, in JSON's types; empty where None.

    Args:
        what: it is, as the error says it.
        given: the dict.

    Raises:
        WsssError: it holds what JSON has not.
    """
    try:
        found = json_of(canonical({} if given is None else given))
    except (TypeError, ValueError) as error:
        raise WsssError(f"Expected {what} in JSON's types: {error}.") from error
    if not isinstance(found, dict):
        raise WsssError(f"Expected {what} as a dict, found {type(given).__name__}.")
    return found


def as_mask(given: Any, what: str = "a mask") -> Mask:
    """A mask uint8 [H, W] of an array of any integers; uint8 as it is.

    Args:
        given: values from 0 to 255.
        what: it is, as the error says it.

    Raises:
        WsssError: another type or shape, or other values.
    """
    if not isinstance(given, np.ndarray) or given.ndim != 2 or given.dtype.kind not in "iu":
        told = type(given).__name__
        if isinstance(given, np.ndarray):
            told = f"{given.dtype} {list(given.shape)}"
        raise WsssError(
            f"Expected {what} as a numpy array of integers [H, W], found {told}.",
            "0 is background, class + 1 a class, 255 ignore.",
        )
    if given.dtype != np.uint8:
        low, high = int(given.min(initial=0)), int(given.max(initial=0))
        if low < 0 or high > IGNORE:
            raise WsssError(
                f"Expected values from 0 to 255 in {what}, found {low if low < 0 else high}.",
                "0 is background, class + 1 a class, 255 ignore.",
            )
    return given.astype(np.uint8, copy=False)
