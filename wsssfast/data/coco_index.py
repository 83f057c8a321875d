"""What a COCO instances file says of its images, and where in it the annotations are."""

import json
import zlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from wsssfast.data.json_stream import CHUNK, JsonStream
from wsssfast.errors import BadFile, WsssError

_IMAGE: dict[str, Callable[[Any], Any]] = {
    "id": int, "file_name": Path, "height": int, "width": int
}  # fmt: skip
_ANNOTATION: dict[str, Callable[[Any], Any]] = {
    "id": int, "image_id": int, "category_id": int, "segmentation": type, "area": float
}  # fmt: skip
_CATEGORY: dict[str, Callable[[Any], Any]] = {"id": int, "name": str}


@dataclass(frozen=True)
class AnnotationTexts:
    """Where the annotations are, in the order of the groups; a group is those of one image id.

    Attributes:
        starts: int64 [G + 1]; annotations starts[g] to starts[g + 1] are group g.
        offsets: int64 [A], bytes before each annotation in the file.
        lengths: int64 [A], its bytes.
        checks: int64 [A], CRC-32 of its bytes.
    """

    starts: NDArray[np.int64]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    checks: NDArray[np.int64]

    def read(self, path: Path, group: int) -> list[dict[str, Any]]:
        """The annotations of one group, in file order. Safe in threads and processes.

        Args:
            path: the file that was indexed.
            group: 0..G-1.

        Raises:
            WsssError: the file is gone, or is no longer what it was.
            BadFile: an annotation that no longer fits the stack it is read on.
        """
        found = []
        some = slice(self.starts[group], self.starts[group + 1])
        rows = np.stack([self.offsets[some], self.lengths[some], self.checks[some]], 1)
        try:
            with path.open("rb") as file:
                for offset, length, check in rows.tolist():
                    file.seek(offset)
                    text = file.read(length)
                    if zlib.crc32(text) != check:
                        raise WsssError(
                            f"Expected {path} as it was when it was opened, found it changed.",
                            "Let it be while a run is at work, and start again.",
                        )
                    found.append(json.loads(text))
        except OSError as error:
            raise WsssError(f"Expected COCO instances in {path}: {error}") from error
        except RecursionError as error:
            raise BadFile(f"annotation at byte {offset}: {error}") from error
        return found


@dataclass(frozen=True)
class CocoIndex:
    """An instances file without its polygons and masks.

    Attributes:
        categories: (id, name) of each category, in file order.
        file_names: of the I images, in file order.
        sizes: int64 [I, 2], height and width.
        groups: int64 [I], the image's group of annotations; -1 where it has none.
        category_ids: the K ids that annotations have.
        annotation_categories: int64 [A], of each annotation: an index into `category_ids`.
        texts: where the A annotations are.
    """

    categories: tuple[tuple[int, str], ...]
    file_names: tuple[str, ...]
    sizes: NDArray[np.int64]
    groups: NDArray[np.int64]
    category_ids: tuple[int, ...]
    annotation_categories: NDArray[np.int64]
    texts: AnnotationTexts


def read_index(file: BinaryIO, chunk: int = CHUNK) -> CocoIndex:
    """Index an instances file in one pass, `chunk` bytes and one annotation at a time.

    Raises:
        KeyError: a part or a field is missing.
        ValueError, TypeError, OverflowError, RecursionError: no JSON, or values that do not fit.
    """
    stream = JsonStream(file, chunk)
    parts = {"images": _images, "annotations": _annotations, "categories": _categories}
    found: dict[str, Any] = {}
    for key in stream.members():
        if key not in parts:
            stream.skip()
        elif stream.peek() != "[":
            raise TypeError(f"{key!r} is no array")
        else:
            found[key] = parts[key](stream)
    stream.finish()
    ids, file_names, sizes = found["images"]
    groups, category_ids, rows = found["annotations"]
    group, category, offsets, lengths, checks = rows[np.argsort(rows[:, 0], kind="stable")].T
    return CocoIndex(
        categories=found["categories"],
        file_names=tuple(file_names),
        sizes=np.array(sizes, np.int64).reshape(-1, 2),
        groups=np.array([groups.get(i, -1) for i in ids], np.int64),
        category_ids=category_ids,
        annotation_categories=category.copy(),
        texts=AnnotationTexts(
            starts=np.searchsorted(group, np.arange(len(groups) + 1)),
            offsets=offsets.copy(),
            lengths=lengths.copy(),
            checks=checks.copy(),
        ),
    )


def _fields(entry: Any, fields: dict[str, Callable[[Any], Any]]) -> list[Any]:
    return [kind(entry[field]) for field, kind in fields.items()]


def _images(stream: JsonStream) -> tuple[list[int], list[str], "array[int]"]:
    ids, names, sizes = [], [], array("q")
    for image in stream.elements():
        number, _, *size = _fields(image.parsed, _IMAGE)
        ids.append(number)
        names.append(image.parsed["file_name"])
        sizes.extend(size)
    return ids, names, sizes


def _annotations(
    stream: JsonStream,
) -> tuple[dict[int, int], tuple[int, ...], NDArray[np.int64]]:
    """Group of each image id, the category ids, and rows of group, category and text [A, 5]."""
    groups: dict[int, int] = {}
    categories: dict[int, int] = {}
    rows = array("q")  # group, category, offset, length, check
    for entry, offset, text in stream.elements():
        _, image, category, *_ = _fields(entry, _ANNOTATION)
        rows.extend((
            groups.setdefault(image, len(groups)),
            categories.setdefault(category, len(categories)),
            offset, len(text), zlib.crc32(text),
        ))  # fmt: skip
    return groups, tuple(categories), np.array(rows, np.int64).reshape(-1, 5)


def _categories(stream: JsonStream) -> tuple[tuple[int, str], ...]:
    found = (_fields(category.parsed, _CATEGORY) for category in stream.elements())
    return tuple((number, name) for number, name in found)
