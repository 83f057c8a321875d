"""The masks that a segmenter or AffinityNet learns from, and the images that have one."""

from pathlib import Path
from typing import Any, Protocol

from wsssfast.data.dataset import Dataset, Item, Mask, odd_values
from wsssfast.errors import BadFile, WsssError, listing


class Labels(Protocol):
    """Masks by image id: label shards, or a data set's own (`TrueMasks`)."""

    @property
    def ids(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def class_names(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def identity(self) -> dict[str, Any]: ...  # noqa: D102

    @property
    def folder(self) -> Path: ...  # noqa: D102

    def mask(self, image_id: str) -> Mask: ...  # noqa: D102


class TrueMasks:
    """A data set's own masks as labels: what full supervision would have."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self.class_names, self.folder = dataset.class_names, Path(dataset.name)
        self.identity: dict[str, Any] = {"masks_of": dataset.fingerprint}
        filed = tuple(item.id for item in dataset if item.mask)
        self.ids = filed or tuple(item.id for item in dataset)  # made or drawn from annotations
        if not filed and all(mask_of(dataset, item) is None for item in dataset):
            raise WsssError("Expected masks in the data set, found none.")

    def mask(self, image_id: str) -> Mask:
        """The mask uint8 [H, W] of an image.

        Raises:
            BadFile: there is none, it cannot be read, or it has values that are no class.
        """
        mask = self._dataset.load_mask(self._dataset.by_id[image_id])
        if mask is None:
            raise BadFile("there is none")
        odd = odd_values(mask, len(self.class_names))
        if odd.size:
            raise BadFile(f"values up to {len(self.class_names)} and 255 expected, found {odd[0]}")
        return mask


def mask_of(dataset: Dataset, item: Item) -> Mask | None:
    """The mask of an item; None where it has none or cannot be read."""
    try:
        return dataset.load_mask(item)
    except BadFile:
        return None


def with_labels(dataset: Dataset, labels: Labels, held_out: Dataset | None = None) -> Dataset:
    """The images that have a mask among the labels, without those that are held out.

    Raises:
        WsssError: labels of other classes, or of images of neither.
    """
    without = held_out.by_id if held_out else {}
    if tuple(labels.class_names) != dataset.class_names:
        raise WsssError(
            f"Expected label shards of the data set's {len(dataset.class_names)} classes, found "
            f"{len(labels.class_names)} others in {labels.folder}."
        )
    have = set(labels.ids)
    unknown = sorted(have - dataset.by_id.keys() - without.keys())
    if unknown:
        raise WsssError(
            f"Expected label shards of images of this data set, found {listing(unknown)}.",
            "Give the --data-root and --split that the shards were made from.",
        )
    kept = have - without.keys()
    return dataset.subset(lambda n, item: item.id in kept, dataset.split)
