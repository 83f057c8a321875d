"""Read an HDF5 file of unknown origin: only plain data that the file itself holds.

HDF5 can point out of a file (external links, external storage, virtual data sets) and declare more
than it holds. Each is refused before anything is read.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from wsssfast.errors import WsssError

_DEFLATE = h5py.h5z.FILTER_DEFLATE
_FILTERS = {_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}  # in every HDF5 build
MOST_DEFLATE = 1040  # deflate cannot shrink by more
Array = np.ndarray[Any, np.dtype[Any]]
Shape = tuple[int | None, ...]
_ERRORS = (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError, zlib.error)


@contextmanager
def open_h5(path: Path) -> Iterator[h5py.File]:
    """Open for reading; whatever is raised inside becomes one clear error, as in `shard_errors`."""
    with shard_errors(path), h5py.File(path, "r", locking=False) as file:
        yield file


@contextmanager
def shard_errors(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside with reading a shard's file becomes one clear error.

    Raises:
        WsssError: not an HDF5 file, or one that is damaged or refused.
    """
    try:
        yield
    except _ERRORS as error:
        reason = "file not found" if isinstance(error, FileNotFoundError) else error
        raise WsssError(
            f"Expected an HDF5 shard at {path}: {str(reason)[:200]}.",
            "Run the command that made it again: what is damaged is made anew.",
        ) from error


def get_dataset(file: h5py.File, name: str, dtype: str, shape: Shape) -> h5py.Dataset:
    """A data set of the file by its path, refused if it is anything but plain stored data.

    Args:
        file: from `open_h5`.
        name: path such as stages/final/values.
        dtype: numpy type string, or "S" for fixed-length bytes of any length.
        shape: that it must have; None stands for any length.

    Raises:
        ValueError: absent, a link, virtual, external, oddly filtered, of another type or shape, or
            larger than the file.
    """
    where: h5py.Group = file
    for part in name.split("/"):
        link = where.get(part, getlink=True) if isinstance(where, h5py.Group) else None
        if link is None:
            raise ValueError(f"{name} is missing")
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{name} is a {type(link).__name__}, which points elsewhere")
        where = where[part]
    data = where
    if not isinstance(data, h5py.Dataset):
        raise ValueError(f"{name} is not a data set")
    if data.is_virtual or data.external:
        raise ValueError(f"{name} keeps its data outside the file")
    plain = data.dtype.kind == "S" if dtype == "S" else data.dtype == np.dtype(dtype)
    fits = data.ndim == len(shape) and all(
        wanted in (None, found) for wanted, found in zip(shape, data.shape, strict=True)
    )
    if not plain or not fits:
        raise ValueError(f"{name} has type {data.dtype} and shape {data.shape}")
    made = data.id.get_create_plist()
    filters = {made.get_filter(n)[0] for n in range(made.get_nfilters())}
    if not filters <= _FILTERS:
        raise ValueError(f"{name} uses the filter {min(filters - _FILTERS)}")
    stored = data.id.get_storage_size()
    room = min(stored, data.file.id.get_filesize()) * (MOST_DEFLATE if _DEFLATE in filters else 1)
    if data.size * data.dtype.itemsize > room:
        raise ValueError(f"{name} declares {data.shape}, more than the file holds")
    return data


def read_array(file: h5py.File, name: str, dtype: str, shape: Shape) -> Array:
    """All of a data set; refusals as in `get_dataset`."""
    values: Array = get_dataset(file, name, dtype, shape)[()]
    return values


def get_text(where: h5py.Group, name: str) -> str | None:
    """A text attribute of fixed length; None for one of variable length, which is not read.

    HDF5 keeps the latter in a heap, and reads a damaged heap for ever.

    Raises:
        ValueError: absent, or not text.
    """
    kind = _attribute(where, name).dtype.kind
    if kind not in "SO":
        raise ValueError(f"the attribute {name} is not text")
    return None if kind == "O" else where.attrs[name].decode()


def get_number(where: h5py.Group, name: str) -> float:
    """An attribute that is one number. Raises ValueError where it is absent or another."""
    found = _attribute(where, name)
    if found.dtype.kind not in "iuf" or found.shape != ():
        raise ValueError(f"the attribute {name} is not a number")
    return float(where.attrs[name])


def _attribute(where: h5py.Group, name: str) -> h5py.h5a.AttrID:
    if name not in where.attrs:
        raise ValueError(f"the attribute {name} is missing")
    return where.attrs.get_id(name)
