"""The true masks that shards are scored against."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from wsssfast.data.dataset import Dataset, Mask
from wsssfast.errors import BadFile, WsssError, counted, listing
from wsssfast.shards.format import KINDS
from wsssfast.shards.shard_set import ShardSet


class Scored(Protocol):
    """What masks are the truth of: shards, or a folder of predicted masks."""

    failed: dict[str, str]

    @property
    def folder(self) -> Path: ...  # noqa: D102

    @property
    def class_names(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def ids(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def missing_shards(self) -> Sequence[int]: ...  # noqa: D102


class Masks:
    """The true masks of the images of shards: iterates over (id, mask uint8 [H, W]).

    Args:
        shards: or what is like them.
        dataset: whose masks; of shards that hold more images than it, its own are scored.
        progress: called with 1 for each image.

    Attributes:
        failed: id -> reason of images that could not be exported, have no readable mask or one that
            does not fit.

    Raises:
        WsssError: shards of another data set, or, after the last image, no masks at all.
    """

    def __init__(self, shards: Scored, dataset: Dataset, progress: Callable[[int], None]) -> None:
        if shards.class_names != dataset.class_names:
            same = sorted(shards.class_names) == sorted(dataset.class_names)
            others = "them in another order" if same else f"{len(shards.class_names)} others"
            raise WsssError(
                f"Expected shards of the data set's {counted(len(dataset.class_names), 'class')}, "
                f"found {others} in {shards.folder}.",
                "Name the data set that the shards were exported from.",
            )
        self._ids = [i for i in shards.ids if i in dataset.by_id]
        self._shards, self._dataset, self._progress = shards, dataset, progress
        if not self._ids:
            self.require_all()
        self.failed = {i: reason for i, reason in shards.failed.items() if i in dataset.by_id}
        self._found = self._without = 0

    def __iter__(self) -> Iterator[tuple[str, Mask]]:
        self._progress(len(self._shards.ids) - len(self._ids))
        for image_id in self._ids:
            try:
                mask = self._dataset.load_mask(self._dataset.by_id[image_id])
            except BadFile as error:
                self.failed[image_id] = f"mask: {error}"
            else:
                if mask is None:
                    self._without += 1
                else:
                    self._found += 1
                    yield image_id, mask
            self._progress(1)
        if not self._found:
            raise WsssError(
                "Expected masks to score against, found none for "
                f"{counted(len(self._ids), 'image')}.",
                listing([f"{image_id}: {reason}" for image_id, reason in self.failed.items()], 1)
                or "Scoring needs a data set with masks.",
            )

    @contextmanager
    def scoring(
        self, image_id: str, refused: type[Exception] = WsssError, what: str = ""
    ) -> Iterator[None]:
        """List an image of which something does not fit, and go on.

        Args:
            image_id: in `failed` afterwards if it is so.
            refused: the error that says so.
            what: does not fit, before its words.
        """
        try:
            yield
        except refused as error:
            self._found -= 1
            self.failed[image_id] = f"{what}{getattr(error, 'message', error)}".rstrip(".")

    def require_all(self) -> None:
        """Refuse shards that hold more images than the data set.

        Raises:
            WsssError: they do.
        """
        others = [i for i in self._shards.ids if i not in self._dataset.by_id]
        if others:
            raise WsssError(
                f"Expected shards of images of this data set, found {listing(others)}.",
                "Give the --data-root and --split that the shards were exported from.",
            )

    def facts(self) -> dict[str, Any]:
        """What was scored and what was not, as JSON-ready values.

        Returns:
            images: how many were scored.
            images_without_mask: how many could not be, for want of a mask.
            images_of_split: how many the data set has.
            images_of_others: how many the shards hold that the data set has not.
            missing_shards: numbers of the shards that are not there, whose images are not scored.
        """
        return {
            "images": self._found,
            "images_without_mask": self._without,
            "images_of_split": len(self._dataset),
            "images_of_others": len(self._shards.ids) - len(self._ids),
            "missing_shards": list(self._shards.missing_shards),
        }


def require_kind(shards: Any, reader: type[ShardSet[Any]]) -> None:
    """Refuse shards of another kind than are scored here.

    Raises:
        WsssError: they are not of this reader.
    """
    if not isinstance(shards, reader):
        told = type(shards).__name__
        if isinstance(shards, ShardSet):
            told = f"{KINDS[shards.kind][0]} in {shards.folder}"
        raise WsssError(
            f"Expected {KINDS[reader.kind][0]}, found {told}.",
            "evaluate_cams takes CamShards(folder), evaluate_labels LabelShards(folder).",
        )
