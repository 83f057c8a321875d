"""COCO instances (2014 and 2017 names, or any file of that format)."""

import gc
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from wsssfast.data.coco_index import AnnotationTexts, CocoIndex
from wsssfast.data.dataset import IGNORE, Dataset, Item, Mask, read_ids, require_folder
from wsssfast.data.images import MOST_PIXELS, item_image, item_size
from wsssfast.data.index_cache import open_index
from wsssfast.data.labels_file import match_labels, read_labels
from wsssfast.errors import BadFile, WsssError, listing

_DEFAULT_SPLITS = ("train2014", "train2017")
_LONGEST = 35  # bits of a run
_FARTHEST = 100_000  # pixels that a polygon may lie outside; pycocotools' memory goes with them


@contextmanager
def _no_collection() -> Iterator[None]:
    """Python would search 400,000 new objects for garbage over and over: a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_no_collection()
def open_coco(root: Path, split: str | None = None, labels: Path | None = None) -> Dataset:
    """Index a COCO folder: `annotations/instances_<split>.json` beside `<split>/`.

    Category ids (1..90 with gaps in COCO) become class indices 0..C-1 in id order, so mask values
    are 1..C. Images without any annotation are left out (COCO 2014: 82,081 of 82,783 stay).

    Args:
        root: the folder.
        split: train2014, val2014, train2017, val2017 …, `SPLIT:list.txt` for the listed ids of a
            split, or `list.txt` for those of the default split; by default train2014 or train2017,
            whichever is there.
        labels: a labels file that replaces the instances' labels.

    Raises:
        WsssError: something is missing or does not fit.
    """
    require_folder(root, "a COCO data set (a folder)")
    if split and Path(split).is_file():
        split = f"{_default_split(root)}:{split}"
    name, _, subset = (split or _default_split(root)).partition(":")
    images = require_folder(
        root / name, f"the COCO images of split {name!r}",
        "Name one of these with --split: "
        f"{listing(sorted(p.name for p in root.iterdir() if p.is_dir()), 8)}.",
    )  # fmt: skip
    source = root / "annotations" / f"instances_{name}.json"
    index = _read(source)
    categories = sorted(index.categories, key=lambda category: category[0])
    class_index = {number: c for c, (number, _) in enumerate(categories)}
    class_names = tuple(name for _, name in categories)
    files = [images / (Path(n).name if "/" in n else n) for n in index.file_names]
    groups = index.groups.tolist()
    records = {files[n].stem: n for n, group in enumerate(groups) if group >= 0}
    if len(records) < len({group for group in groups if group >= 0}):
        raise WsssError(f"Expected images of different names in {source}, found one twice.")
    classes = _classes(index, class_index, [groups[n] for n in records.values()], source)
    image_labels = {i: classes[groups[n]] for i, n in records.items()}
    if subset:
        known = {file.stem for file in files}
        wanted = [_full_id(i, known, name) for i in read_ids(Path(subset))]
        unknown = [i for i in wanted if i not in known]
        if unknown:
            raise WsssError(
                f"Expected images of {source}, found {listing(unknown)} in {subset}.",
                "Give the split of these before the list, as --split val2017:list.txt.",
            )
        records = {i: records[i] for i in wanted if i in records}
    if labels is not None:
        known = {file.stem for file in files}
        image_labels = match_labels(read_labels(labels, class_names), records, known, labels)
    items = tuple(Item(i, image_labels[i], files[records[i]]) for i in sorted(records))
    absent = _absent(items, images)
    if absent:
        raise WsssError(f"Expected an image file in {images} for {listing(absent)}, found none.")
    heights, widths = index.sizes.T.tolist()
    where = {i: (groups[n], heights[n], widths[n]) for i, n in records.items()}
    return Dataset(
        name="coco",
        split=split or name,
        class_names=class_names,
        items=items,
        image_size=item_size,
        load_image=item_image,
        load_mask=partial(_load_mask, source.absolute(), index.texts, where, class_index),
        label_source=labels.name if labels else source.name,
    )


def _full_id(image_id: str, known: set[str], split: str) -> str:
    """The id among those known: of 2017 000000000139, which lists also name 139 or as in 2014."""
    digits = image_id.rpartition("_")[2].zfill(12)
    names = (image_id, digits, f"COCO_{split}_{digits}")
    return next((name for name in names if name in known), image_id)


def instance_mask(
    annotations: Sequence[dict[str, Any]], class_index: dict[int, int], height: int, width: int
) -> Mask:
    """Semantic mask of one image's instances.

    Larger areas are painted first, so that smaller objects lie on top (equal areas: higher
    annotation id first); crowds become 255 where no instance is (method §8).

    Args:
        annotations: COCO annotations (polygons, RLE or compressed RLE).
        class_index: category id -> 0-based class.
        height: of the image.
        width: of the image.

    Returns:
        uint8 [H, W]: 0 background, class + 1, 255.

    Raises:
        BadFile: a segmentation that pycocotools cannot decode, or a size that no image has.
    """
    if min(height, width) < 1 or height * width > MOST_PIXELS:
        raise BadFile(f"an image of {width}x{height} pixels")
    mask = np.zeros((height, width), dtype=np.uint8)
    crowd = np.zeros((height, width), dtype=bool)
    for annotation in sorted(annotations, key=lambda a: (-float(a["area"]), -int(a["id"]))):
        region = _region(annotation, height, width)
        if annotation.get("iscrowd", 0):
            crowd |= region
        else:
            mask[region] = class_index[int(annotation["category_id"])] + 1
    mask[crowd & (mask == 0)] = IGNORE
    return mask


def _region(annotation: dict[str, Any], height: int, width: int) -> "np.ndarray[Any, Any]":
    shape = annotation["segmentation"]
    try:
        if isinstance(shape, list):
            if not all(np.all(np.abs(np.asarray(ring, float)) <= _FARTHEST) for ring in shape):
                raise BadFile(f"annotation {annotation.get('id')}: a polygon far off the image")
            rle = coco_mask.merge(coco_mask.frPyObjects(shape, height, width))
        elif isinstance(shape["counts"], list):
            rle = coco_mask.frPyObjects(shape, height, width)
        else:
            rle = shape
        if list(rle["size"]) != [height, width]:
            raise BadFile(f"a segmentation of size {rle['size']}, not {[height, width]}")
        if not isinstance(shape, list) and _covered(rle["counts"]) != height * width:
            raise BadFile(f"annotation {annotation.get('id')}: runs that do not fill the image")
        return np.asarray(coco_mask.decode(rle)).astype(bool)
    except BadFile:
        raise
    except Exception as error:  # pycocotools raises bare ones
        raise BadFile(f"annotation {annotation.get('id')}: {error}") from error


def _covered(counts: str | bytes) -> int:
    """Pixels that a compressed RLE covers; decoding one that covers fewer leaves them to chance.

    Each letter has 5 bits of a run; from the fourth on, runs are given as the difference to the
    run before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for letter in counts.encode() if isinstance(counts, str) else counts:
        bits = letter - 48
        value |= (bits & 31) << shift
        shift += 5
        if shift > _LONGEST:
            raise ValueError("a run without end")
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    return sum(runs)


def _load_mask(
    source: Path,
    texts: AnnotationTexts,
    where: dict[str, tuple[int, int, int]],
    class_index: dict[int, int],
    item: Item,
) -> Mask:
    group, height, width = where[item.id]
    return instance_mask(texts.read(source, group), class_index, height, width)


def _classes(
    index: CocoIndex, class_index: dict[int, int], wanted: list[int], source: Path
) -> list[tuple[int, ...]]:
    """Sorted classes of each group of annotations; those wanted have no unknown category."""
    starts = index.texts.starts
    group = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    known = np.array([class_index.get(number, -1) for number in index.category_ids], np.int64)
    classes = known[index.annotation_categories]
    unknown = index.annotation_categories[(classes < 0) & np.isin(group, wanted)]
    if len(unknown):
        lowest = min(index.category_ids[c] for c in set(unknown.tolist()))
        raise WsssError(f"Unknown category {lowest} in {source}.")
    pairs = np.sort(group * (len(class_index) + 1) + classes + 1)
    owners, classes = np.divmod(pairs[np.diff(pairs, prepend=-1) > 0], len(class_index) + 1)
    bounds = np.searchsorted(owners, np.arange(len(starts))).tolist()
    found = (classes - 1).tolist()
    return [tuple(found[start:stop]) for start, stop in pairwise(bounds)]


def _absent(items: Iterable[Item], folder: Path) -> list[str]:
    """Ids of the items without an image file; listing the folder once spares a look at each."""
    try:
        with os.scandir(folder) as entries:
            there = {entry.name for entry in entries if entry.is_file()}
    except OSError:
        there = set()
    return [i.id for i in items if i.image and i.image.name not in there and not i.image.is_file()]


def _default_split(root: Path) -> str:
    for split in _DEFAULT_SPLITS:
        if (root / "annotations" / f"instances_{split}.json").is_file():
            return split
    raise WsssError(
        f"Expected annotations/instances_train2014.json or …_train2017.json in {root}, found none.",
        "Check --data-root, or name the --split.",
    )


def _read(path: Path) -> CocoIndex:
    if not path.is_file():
        raise WsssError(f"Expected COCO instances at {path}, found none.", "Check --split.")
    try:
        return open_index(path)
    except KeyError as error:
        raise WsssError(f"Expected COCO instances in {path}, found no {error}.") from error
    except (OSError, ValueError, OverflowError, RecursionError, TypeError) as error:
        raise WsssError(f"Expected COCO instances in {path}: {error}") from error
