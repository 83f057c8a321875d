"""The true masks that shards are scored against."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from wsssfast.data.dataset import Dataset, Mask
from wsssfast.errors import BadFile, WsssError, listing
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
        dataset: whose masks; must hold every image of the shards.
        progress: called with 1 for each image.

    Attributes:
        failed: id -> reason of images that could not be exported or have no readable mask.

    Raises:
        WsssError: shards of another data set, or, after the last image, no masks at all.
    """

    def __init__(self, shards: Scored, dataset: Dataset, progress: Callable[[int], None]) -> None:
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
        self._shards, self._dataset, self._progress = shards, dataset, progress
        self.failed = dict(shards.failed)
        self._found = self._without = 0

    def __iter__(self) -> Iterator[tuple[str, Mask]]:
        for image_id in self._shards.ids:
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
                f"Expected masks to score against, found none for {len(self._shards.ids)} images.",
                "Scoring needs a data set with masks.",
            )

    def facts(self) -> dict[str, Any]:
        """What was scored and what was not, as JSON-ready values.

        Returns:
            images: how many were scored.
            images_without_mask: how many could not be, for want of a mask.
            images_of_split: how many the data set has.
            missing_shards: numbers of the shards that are not there, whose images are not scored.
        """
        return {
            "images": self._found,
            "images_without_mask": self._without,
            "images_of_split": len(self._dataset),
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


@contextmanager
def naming(image_id: str) -> Iterator[None]:
    """Put the image's id before what is wrong with it, by default with its mask.

    Raises:
        WsssError: as inside.
    """
    try:
        yield
    except WsssError as error:
        raise WsssError(f"{image_id}: {error.message}", error.remedy or "Mend the mask.") from error
