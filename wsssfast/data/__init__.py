"""Data sets: an index without pixels, and functions that decode one image or mask."""

from pathlib import Path

from wsssfast.data.dataset import IGNORE, Dataset, Item
from wsssfast.errors import WsssError

KINDS = ("voc", "coco", "folder", "synthetic")

__all__ = ["IGNORE", "KINDS", "Dataset", "Item", "open_dataset"]


def open_dataset(
    kind: str,
    root: str | Path | None = None,
    split: str | None = None,
    labels: str | Path | None = None,
) -> Dataset:
    """Index a data set by kind: voc, coco, folder (each with its root) or synthetic (none).

    Raises:
        WsssError: an unknown kind, a missing root, or whatever that kind's reader finds wrong.
    """
    if kind == "synthetic":
        from wsssfast.data.synthetic import open_synthetic

        if root is not None or labels is not None:
            raise WsssError(
                "Expected no --data-root and no --labels with the embedded synthetic data set.",
                "Leave them out, or name another --dataset.",
            )
        return open_synthetic(split)
    if kind not in KINDS:
        raise WsssError(f"Expected a data set out of {', '.join(KINDS)}, found {kind!r}.")
    if root is None:
        raise WsssError(f"Expected the folder of the {kind} data set.", "Give it by --data-root.")
    root, labels = Path(root), None if labels is None else Path(labels)
    if kind == "voc":
        from wsssfast.data.voc import open_voc

        return open_voc(root, split, labels)
    if kind == "coco":
        from wsssfast.data.coco import open_coco

        return open_coco(root, split, labels)
    from wsssfast.data.folder import open_folder

    return open_folder(root, split, labels)
