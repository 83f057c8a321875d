"""Images without image-level labels: their classes are for a classifier to predict."""

from dataclasses import replace
from pathlib import Path

from wsssfast.data.dataset import Dataset, Item, read_ids, require_folder
from wsssfast.data.folder import folder_images, images_in
from wsssfast.data.images import item_image, item_mask, item_size
from wsssfast.data.synthetic import open_synthetic
from wsssfast.data.voc import DEFAULT_SPLIT, voc_images
from wsssfast.errors import WsssError, listing


def open_unlabelled(
    kind: str, root: Path | None, split: str | None, class_names: tuple[str, ...]
) -> Dataset:
    """Index the images of a data set, without labels, annotations or masks.

    Args:
        kind: voc, coco, folder or synthetic.
        root: of the data set; None for synthetic.
        split: as the labelled data set takes it; for coco the folder of the images, such as
            test2014, or `FOLDER:list.txt`.
        class_names: the C classes of the classifier.

    Raises:
        WsssError: something is missing or does not fit.
    """
    if kind == "synthetic":
        found = open_synthetic(split).unlabelled()
        return replace(found, class_names=class_names, label_source="none")
    if root is None:
        raise WsssError(f"Expected the folder of the {kind} data set.", "Give it by --data-root.")
    if kind == "voc":
        split = split or DEFAULT_SPLIT
        root, ids, _ = voc_images(root, split)
        images = {i: root / "JPEGImages" / f"{i}.jpg" for i in ids}
    elif kind == "coco":
        images, ids = _coco_images(root, split)
    else:
        images, ids = folder_images(root, split)
    return Dataset(
        name=kind,
        split=split or "all",
        class_names=class_names,
        items=tuple(Item(i, (), images[i]) for i in sorted(ids)),
        image_size=item_size,
        load_image=item_image,
        load_mask=item_mask,
        label_source="none",
    )


def _coco_images(root: Path, split: str | None) -> tuple[dict[str, Path], list[str]]:
    if not split:
        raise WsssError("Expected the folder of the images.", "Name it with --split test2014.")
    name, _, listed = split.partition(":")
    folder = require_folder(root / name, f"the COCO images of split {name!r}")
    images = images_in(folder)
    if not listed:
        return images, list(images)
    ids = read_ids(Path(listed))
    absent = [i for i in ids if i not in images]
    if absent:
        raise WsssError(f"Expected an image in {folder} for {listing(absent)}, found none.")
    return images, ids
