"""Label shards to the files that others read: palette PNG, COCO instances, VOC's archive."""

import gzip
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from wsssfast.data.coco_names import CATEGORY_IDS, CLASS_NAMES
from wsssfast.data.dataset import IGNORE, Mask
from wsssfast.data.palette import mask_palette
from wsssfast.data.voc import CLASS_NAMES as VOC_CLASSES
from wsssfast.errors import WsssError, listing
from wsssfast.files import output_folder, publish, telling_no_room, write_each
from wsssfast.shards.label_shards import LabelShards

_COCO_NAME = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})")


def to_png(shards: LabelShards, out: Path, progress: Callable[[int], None]) -> int:
    """`<id>.png`: 8-bit palette PNG in VOC's colours, as VOC's own masks are.

    The pixels' values are the mask's, exactly: 0 background, class + 1, 255 ignore;
    `wsssfast.data.images.read_mask` gives them back. Each file appears whole or not at all and
    replaces what was there.

    Args:
        shards: what to convert.
        out: folder of the files.
        progress: called with 1 a file.

    Returns:
        How many files were written.

    Raises:
        WsssError: a damaged shard, or `out` cannot be written to.
    """
    return write_each(out, shards, ".png", lambda i: _png(shards.mask(i)), progress)


def _png(mask: Mask) -> bytes:
    """A palette PNG of a mask."""
    picture, buffer = Image.fromarray(mask), io.BytesIO()
    picture.putpalette(mask_palette().tobytes())
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def to_voc_archive(shards: LabelShards, out: Path, progress: Callable[[int], None]) -> int:
    """VOC's evaluation server's archive: `results/VOC2012/Segmentation/comp6_test_cls/<id>.png`.

    Checked by its rules: VOC's 20 classes, a palette PNG of each image, none missing, values 0 to
    20 only. Equal masks give an equal file.

    Args:
        shards: predicted masks, of the whole of a split.
        out: the file (.tgz); it appears whole or not at all and replaces what was there.
        progress: called with 1 an image.

    Returns:
        How many masks it holds.

    Raises:
        WsssError: a rule is not kept, a damaged shard, or `out` cannot be written.
    """
    require_voc(shards.class_names, shards.folder)
    absent = [*shards.failed, *shards.missing_names]
    if absent:
        raise WsssError(
            f"Expected a mask of every image, found none of {listing(absent)}.",
            "The server wants all; complete the run first.",
        )
    if out.is_dir():
        raise WsssError(f"Expected a file for the archive, found a folder at {out}.")

    def write(path: Path) -> None:
        with (
            path.open("wb") as raw,
            gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w") as archive,
        ):
            for image_id in sorted(shards.ids):
                mask = shards.mask(image_id)
                if mask.max(initial=0) > len(VOC_CLASSES):
                    raise WsssError(
                        f"Expected a class for every pixel of {image_id}, found {mask.max()}.",
                        "The server takes no ignored pixels: use one background setting.",
                    )
                data = _png(mask)
                entry = tarfile.TarInfo(
                    f"results/VOC2012/Segmentation/comp6_test_cls/{image_id}.png"
                )
                entry.size, entry.mode = len(data), 0o644
                archive.addfile(entry, io.BytesIO(data))
                progress(1)

    output_folder(out.parent, "the archive")
    with telling_no_room(out):
        publish(out, write)
    return len(shards)


def require_voc(class_names: tuple[str, ...], source: Path) -> None:
    """Refuse what the server cannot score.

    Raises:
        WsssError: other classes than VOC's.
    """
    if class_names != VOC_CLASSES:
        raise WsssError(
            f"Expected VOC's {len(VOC_CLASSES)} classes in {source} for its archive, found "
            f"{len(class_names)} others."
        )


def to_coco(shards: LabelShards, out: Path, progress: Callable[[int], None]) -> int:
    """One JSON file of COCO's "instances" layout, which pycocotools and `open_coco` read.

    An image is `{id, file_name: "<id>.jpg", height, width}`; its id is the number in COCO's file
    names where all have one, else 1..n by sorted name. A category is `{id, name}`, in class order:
    COCO's own ids for COCO's 80 classes, else 1..C. Each class of a mask is one annotation with a
    compressed RLE `{size, counts}`, its `area` and its `bbox` [x, y, width, height].

    Ignored pixels are a crowd (`iscrowd` 1) of each of the image's labels that the mask lacks, or
    of its first class where it lacks none; where nothing is ignored these crowds are empty. An
    image with neither labels nor classes has one of the first category, as images without
    annotation are commonly left out. So `open_coco` gives back all masks exactly, and the labels of
    all other images where they include the mask's classes.

    The images are done one by one: memory does not grow with their number but for their ids.

    Args:
        shards: what to convert.
        out: the file; it appears whole or not at all and replaces what was there.
        progress: called with 1 an image.

    Returns:
        How many images the file has.

    Raises:
        WsssError: a damaged shard, or `out` cannot be written.
    """
    if out.is_dir():
        raise WsssError(f"Expected a file for the masks, found a folder at {out}.")
    output_folder(out.parent, "the masks")
    with telling_no_room(out):
        publish(out, partial(_write, shards, progress))
    return len(shards)


def _write(shards: LabelShards, progress: Callable[[int], None], path: Path) -> None:
    numbers = _image_numbers(shards.ids)
    names = shards.class_names
    ids = CATEGORY_IDS if names == CLASS_NAMES else tuple(range(1, len(names) + 1))
    info = {"description": "masks of label shards", "version": f"wsssfast {version('wsssfast')}"}
    categories = ({"id": c, "name": name} for c, name in zip(ids, names, strict=True))
    with path.open("w", encoding="ascii") as file:
        file.write(f'{{"info": {json.dumps(info)},\n')
        _write_array(file, "categories", categories)
        file.write(",\n")
        _write_array(file, "images", (_image(shards, i, numbers[i]) for i in numbers))
        file.write(",\n")
        _write_array(file, "annotations", _annotations(shards, numbers, ids, progress))
        file.write("}\n")


def _write_array(file: TextIO, key: str, entries: Iterable[dict[str, Any]]) -> None:
    file.write(f'"{key}": [')
    for n, entry in enumerate(entries):
        file.write(f"{',' if n else ''}\n{json.dumps(entry)}")
    file.write("]")


def _image_numbers(ids: tuple[str, ...]) -> dict[str, int]:
    """Number of each image, by sorted name."""
    found = [_COCO_NAME.fullmatch(image_id) for image_id in sorted(ids)]
    numbers = [int(match[1]) for match in found if match]
    if len(set(numbers)) != len(ids):
        numbers = list(range(1, len(ids) + 1))
    return dict(zip(sorted(ids), numbers, strict=True))


def _image(shards: LabelShards, image_id: str, number: int) -> dict[str, Any]:
    height, width = shards.image_size(image_id)
    return {"id": number, "file_name": f"{image_id}.jpg", "height": height, "width": width}


def _annotations(
    shards: LabelShards,
    numbers: dict[str, int],
    category_ids: tuple[int, ...],
    progress: Callable[[int], None],
) -> Iterator[dict[str, Any]]:
    count = 0
    for image_id, number in numbers.items():
        mask = shards.mask(image_id)
        for c, crowd, region in _regions(mask, shards.labels(image_id).tolist()):
            count += 1  # from 1: pycocotools' evaluation takes 0 for "no match"
            yield {
                "id": count,
                "image_id": number,
                "category_id": category_ids[c],
                **_encoded(region),
                "iscrowd": int(crowd),
            }
        progress(1)


def _regions(
    mask: Mask, labels: list[int]
) -> Iterator[tuple[int, bool, "np.ndarray[Any, np.dtype[np.bool_]]"]]:
    """(class, whether it is a crowd, region [H, W]) of each annotation of an image."""
    values = np.flatnonzero(np.bincount(mask.ravel(), minlength=IGNORE + 1)).tolist()
    classes = [value - 1 for value in values if 0 < value < IGNORE]
    for c in classes:
        yield c, False, mask == c + 1
    crowds = [c for c in labels if c not in classes]
    if not crowds and (IGNORE in values or not classes):
        crowds = (classes or [0])[:1]
    for c in crowds:
        yield c, True, mask == IGNORE


def _encoded(region: "np.ndarray[Any, np.dtype[np.bool_]]") -> dict[str, Any]:
    """`segmentation`, `area` and `bbox` of a region [H, W]."""
    rle = coco_mask.encode(np.asfortranarray(region, np.uint8))
    return {
        "segmentation": {"size": list(region.shape), "counts": rle["counts"].decode("ascii")},
        "area": int(coco_mask.area(rle)),
        "bbox": [int(side) for side in coco_mask.toBbox(rle)],
    }
