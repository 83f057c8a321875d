"""PASCAL VOC 2012 in its VOCdevkit layout."""

from pathlib import Path
from xml.etree.ElementTree import ParseError

import defusedxml
from defusedxml.ElementTree import parse

from wsssfast.data.dataset import Dataset, Item, NoLabels, read_ids, require_folder
from wsssfast.data.images import item_image, item_mask, item_size
from wsssfast.data.labels_file import match_labels, read_labels
from wsssfast.errors import WsssError, listing

CLASS_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
DEFAULT_SPLIT = "train_aug"
_MASK_FOLDERS = ("SegmentationClassAug", "SegmentationClass")


def open_voc(root: Path, split: str | None = None, labels: Path | None = None) -> Dataset:
    """Index a VOC folder.

    Args:
        root: the folder of `JPEGImages`, or a parent that holds `VOCdevkit/VOC2012`.
        split: name of a list in `ImageSets/Segmentation` (train, val, train_aug, test …) or the
            path of a list file, or several joined by `+`; train_aug by default. Where train_aug has
            no list it is every id with a SegmentationClassAug mask that is not in val.
        labels: a labels file; by default `Annotations/*.xml`, else `labels.json` or
            `cls_labels.npy` beside `JPEGImages`.

    Raises:
        WsssError: something is missing or does not fit.
    """
    root, ids, known = voc_images(root, split)
    images = root / "JPEGImages"
    if labels is None:
        beside = (root / "labels.json", root / "cls_labels.npy")
        if not (root / "Annotations").is_dir():
            labels = next((path for path in beside if path.is_file()), None)
    if labels is not None:
        found = match_labels(read_labels(labels, CLASS_NAMES), ids, known, labels)
    elif (root / "Annotations").is_dir():
        found = {i: _xml_labels(root / "Annotations" / f"{i}.xml") for i in ids}
    else:
        raise NoLabels(
            f"Expected image labels in {root / 'Annotations'}, found none.",
            "Name a labels file with --labels.",
        )
    folders = [root / name for name in _MASK_FOLDERS if (root / name).is_dir()]
    masked = [(folder, {path.name for path in folder.iterdir()}) for folder in folders]

    def mask_path(image_id: str) -> Path | None:
        name = f"{image_id}.png"
        return next((folder / name for folder, names in masked if name in names), None)

    return Dataset(
        name="voc",
        split=split or DEFAULT_SPLIT,
        class_names=CLASS_NAMES,
        items=tuple(Item(i, found[i], images / f"{i}.jpg", mask_path(i)) for i in ids),
        image_size=item_size,
        load_image=item_image,
        load_mask=item_mask,
        label_source=labels.name if labels else "Annotations/*.xml",
    )


def voc_images(root: Path, split: str | None) -> tuple[Path, list[str], set[str]]:
    """The folder that holds `JPEGImages`, the sorted ids of a split, and those of all images.

    Args:
        root: as `open_voc` takes it.
        split: as `open_voc` takes it.

    Raises:
        WsssError: no such folder or split, or images are missing.
    """
    root = next(
        (r for r in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012")
         if (r / "JPEGImages").is_dir()),
        root,
    )  # fmt: skip
    require_folder(root, "a VOC data set (a folder)")
    images = require_folder(root / "JPEGImages", "a VOC data set with JPEGImages")
    split = split or DEFAULT_SPLIT
    ids = sorted(_split_ids(root, split))
    known = {path.stem for path in images.iterdir() if path.suffix == ".jpg"}
    absent = [i for i in ids if i not in known]
    if absent:
        raise WsssError(
            f"Expected an image of each id of split {split!r} in {images}, found none for "
            f"{listing(absent)}."
        )
    return root, ids, known


def _split_ids(root: Path, split: str) -> list[str]:
    lists = root / "ImageSets" / "Segmentation"
    for path in (lists / f"{split}.txt", Path(split)):
        if path.is_file():
            return [image_id.split()[0] for image_id in read_ids(path)]  # a -1 or 1 may follow
    if "+" in split:
        return sorted({i for part in split.split("+") for i in _split_ids(root, part)})
    masks = root / "SegmentationClassAug"
    if split == "train_aug" and masks.is_dir() and (lists / "val.txt").is_file():
        val = set(read_ids(lists / "val.txt"))
        return [path.stem for path in masks.glob("*.png") if path.stem not in val]
    have = sorted(path.stem for path in lists.glob("*.txt"))
    raise WsssError(
        f"Expected the split {split!r} in {lists}, found {listing(have, 8) or 'no lists'}.",
        "Name one of these with --split, or the path of a list file.",
    )


def _xml_labels(path: Path) -> tuple[int, ...]:
    try:
        names = [element.text or "" for element in parse(path).iterfind("object/name")]
    except (OSError, ParseError, defusedxml.DefusedXmlException, ValueError, LookupError) as error:
        raise WsssError(f"Expected a VOC annotation at {path}: {error}") from error
    unknown = [name for name in names if name not in CLASS_NAMES]
    if unknown:
        raise WsssError(f"Unknown class {listing(unknown)!r} in {path}.")
    return tuple(sorted({CLASS_NAMES.index(name) for name in names}))
