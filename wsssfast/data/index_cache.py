"""The index of a large COCO file, kept in the user's cache folder between runs.

A cache file is SHA-256 of the rest, 8 bytes of header length, a JSON header, and the index's arrays
as little-endian int64. What does not fit the instances file as it is now, or itself, is made anew.
"""

import hashlib
import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from wsssfast.data.coco_index import AnnotationTexts, CocoIndex, read_index
from wsssfast.parse import json_of

FORMAT = 1
LEAST = 16 << 20  # bytes of an instances file that is worth a cache
_SAMPLES = 16
_ARRAYS = ("sizes", "groups", "annotation_categories", "starts", "offsets", "lengths", "checks")


def open_index(path: Path) -> CocoIndex:
    """The index of an instances file, from the cache where it holds it, else read and kept there.

    Warns where it cannot be kept.

    Raises:
        OSError: the file cannot be read.
        Exception: as `read_index`.
    """
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size < LEAST:
            return read_index(file)
        identity = _identity(path, file)
        index = _load(path, identity)
        if index is None:
            file.seek(0)
            index = read_index(file)
            if _identity(path, file) == identity:
                _store(path, _pack(index, identity))
    return index


def cache_file(path: Path) -> Path:
    """Where the index of an instances file is kept: below XDG_CACHE_HOME, ~/.cache where unset.

    Raises:
        RuntimeError: the user has no home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    return Path(base) / "wsssfast" / "coco" / f"{name}.index"


def _identity(path: Path, file: BinaryIO) -> dict[str, Any]:
    """What tells this state of this file: path, system's record, and a sample of its bytes."""
    now = os.fstat(file.fileno())
    sample = hashlib.sha256()
    for part in range(_SAMPLES):
        file.seek(max(0, now.st_size - 4096) * part // (_SAMPLES - 1))
        sample.update(file.read(4096))
    return {
        "format": FORMAT,
        "path": hashlib.sha256(os.fsencode(path.resolve())).hexdigest(),
        "size": now.st_size,
        "mtime_ns": now.st_mtime_ns,
        "ctime_ns": now.st_ctime_ns,  # moves on even where a copying tool sets the other back
        "inode": now.st_ino,
        "sample": sample.hexdigest(),
    }


def _pack(index: CocoIndex, identity: dict[str, Any]) -> bytes:
    held = {**vars(index), **vars(index.texts)}
    arrays = [held[name] for name in _ARRAYS]
    header = {name: held[name] for name in ("categories", "file_names", "category_ids")}
    header |= {"identity": identity, "sizes": [array.size for array in arrays]}
    text = json.dumps(header, ensure_ascii=False).encode("utf-8", "surrogatepass")
    values = (array.astype("<i8").tobytes() for array in arrays)
    content = b"".join([len(text).to_bytes(8, "little"), text, *values])
    return hashlib.sha256(content).digest() + content


def _load(path: Path, identity: dict[str, Any]) -> CocoIndex | None:
    """What the cache holds of this very file; None where that is nothing that fits."""
    try:
        kept = cache_file(path)
        if not kept.is_file() or kept.stat().st_size > identity["size"]:
            return None
        return _unpack(kept.read_bytes(), identity)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError):
        return None  # RuntimeError: a user without a home


def _unpack(data: bytes, identity: dict[str, Any]) -> CocoIndex:
    """The index in a cache file.

    Raises:
        ValueError, KeyError, TypeError, OverflowError: it is of another file, or says what cannot
            be.
    """
    content = memoryview(data)[32:]
    if hashlib.sha256(content).digest() != data[:32]:
        raise ValueError("damaged")
    end = 8 + int.from_bytes(content[:8], "little")
    header = json_of(bytes(content[8:end]))
    if header["identity"] != identity:
        raise ValueError("of another file")
    splits = np.cumsum([0, *map(int, header["sizes"])]).tolist()
    numbers = np.frombuffer(content[end:], "<i8").astype(np.int64)
    if len(splits) != len(_ARRAYS) + 1 or splits != sorted(splits) or splits[-1] != len(numbers):
        raise ValueError("another number of values")
    found = {
        name: numbers[start:stop]
        for name, start, stop in zip(_ARRAYS, splits, splits[1:], strict=False)
    }
    index = CocoIndex(
        categories=tuple((_whole(number), _text(name)) for number, name in header["categories"]),
        file_names=tuple(map(_text, header["file_names"])),
        sizes=found["sizes"].reshape(-1, 2),
        groups=found["groups"],
        category_ids=tuple(map(_whole, header["category_ids"])),
        annotation_categories=found["annotation_categories"],
        texts=AnnotationTexts(*(found[name] for name in _ARRAYS[3:])),
    )
    _check(index, identity["size"])
    return index


def _check(index: CocoIndex, size: int) -> None:
    texts, images = index.texts, len(index.file_names)
    count = len(texts.offsets)
    fits = (
        len(index.sizes) == len(index.groups) == images
        and len(texts.lengths) == len(texts.checks) == len(index.annotation_categories) == count
        and len(texts.starts) > 0
        and texts.starts[0] == 0
        and texts.starts[-1] == count
        and _within(texts.starts, 0, count + 1)
        and bool(np.all(np.diff(texts.starts) >= 0))
        and _within(index.groups, -1, len(texts.starts) - 1)
        and _within(index.annotation_categories, 0, len(index.category_ids))
        and _within(texts.offsets, 0, size)
        and _within(texts.lengths, 1, size + 1)
        and _within(texts.offsets + texts.lengths, 1, size + 1)
        and _within(texts.checks, 0, 1 << 32)
    )
    if not fits:
        raise ValueError("out of range")


def _within(values: NDArray[np.int64], least: int, beyond: int) -> bool:
    return bool(np.all((values >= least) & (values < beyond)))


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError("no integer")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError("no text")
    return value


def _store(path: Path, data: bytes) -> None:
    """Appear complete or not at all, whoever else does the same."""
    partial = ""
    try:
        kept = cache_file(path)
        kept.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=kept.parent, prefix=f".{kept.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(partial).replace(kept)
    except (OSError, RuntimeError) as error:
        warnings.warn(
            f"The index of {path} cannot be kept ({error}); each run reads the file anew.",
            RuntimeWarning,
            stacklevel=2,
        )
    finally:
        if partial:
            Path(partial).unlink(missing_ok=True)
