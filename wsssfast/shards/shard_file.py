"""What the HDF5 files of all kinds have: ids, image sizes, image-level labels (docs/shards.md)."""

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from wsssfast.errors import WsssError
from wsssfast.files import publish
from wsssfast.shards.format import (
    FORMAT_VERSION,
    MOST_PIXELS,
    Sidecar,
    canonical,
    shard_stem,
    write_sidecar,
)
from wsssfast.shards.require import Record, plain, require_place, require_records
from wsssfast.shards.safe_h5 import get_text, read_array

R = TypeVar("R", bound=Record)


def write_shard(
    folder: str | Path,
    kind: str,
    index: int,
    count: int,
    records: Sequence[R],
    add: Callable[[h5py.File, Sequence[R]], None],
    *,
    identity: dict[str, Any],
    failed: dict[str, str] | None,
    config: dict[str, Any] | None,
    versions: dict[str, str] | None,
) -> Sidecar:
    """Write one shard and then its sidecar; both appear complete or not at all.

    A shard of this index and count that is there is replaced, as a run that resumes needs it.

    Args:
        folder: an existing folder.
        kind: of `KINDS`.
        index: of the shard, from 0.
        count: of all shards.
        records: in the order to be stored.
        add: adds to the file what only this kind has.
        identity: configuration identity of the set, which its readers know.
        failed: id -> reason of the images that are missing.
        config: resolved options, for the record.
        versions: of packages, for the record.

    Raises:
        WsssError: what readers would refuse, or what JSON cannot hold.
        OSError: no such folder, or the disk is full or not writable.
    """
    require_place(index, count)
    require_records(records, len(identity["class_names"]))
    failed, config = plain("failed", failed), plain("config", config)
    versions = plain("versions", versions)
    if not all(isinstance(reason, str) for reason in failed.values()):
        raise WsssError("Expected failed as id -> reason, a text, found another type.")
    folder = Path(folder)
    path = folder / f"{shard_stem(kind, index, count)}.h5"
    # HDF5 crashes when the disk is full as it closes a file: let it write to memory
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["format"] = np.bytes_(f"wsssfast.{kind}")  # of fixed length (safe_h5)
        file.attrs["version"] = FORMAT_VERSION
        file.attrs["identity"] = canonical(identity)
        names = [record.id.encode() for record in records]
        file["ids"] = np.array(names, dtype=f"S{max(map(len, names), default=1)}")
        sizes = [record.image_size for record in records]
        file["image_size"] = np.array(sizes, dtype=np.int32).reshape(-1, 2)
        file["label_offsets"] = ends([len(record.labels) for record in records])
        file["labels"] = np.array([c for r in records for c in r.labels], dtype=np.uint8)
        add(file, records)
    path.with_suffix(".json").unlink(missing_ok=True)  # what it says is done no longer
    content = buffer.getvalue()
    publish(path, lambda partial: partial.write_bytes(content))
    sidecar = Sidecar(
        kind=kind,
        index=index,
        count=count,
        ids=tuple(record.id for record in records),
        failed=dict(sorted(failed.items())),
        identity=identity,
        config=config,
        versions=versions,
        file_bytes=len(content),
        file_sha256=hashlib.sha256(content).hexdigest(),
    )
    write_sidecar(folder, sidecar)
    return sidecar


@dataclass(frozen=True)
class Shard:
    """The small arrays of one HDF5 file.

    Attributes:
        path: of the file.
        image_size: int32 [n, 2], height and width of each image.
        label_offsets: int64 [n + 1], where the labels of each image begin and end.
        labels: uint8 [L], 0-based classes.
    """

    path: Path
    image_size: NDArray[np.int32]
    label_offsets: NDArray[np.int64]
    labels: NDArray[np.uint8]

    def size_of(self, n: int) -> tuple[int, int]:
        """(height, width) of the n-th image."""
        height, width = self.image_size[n].tolist()
        return height, width

    def labels_of(self, n: int) -> NDArray[np.int64]:
        """int64 [K], sorted 0-based classes of the n-th image."""
        found = self.labels[self.label_offsets[n] : self.label_offsets[n + 1]]
        return found.astype(np.int64)


def read_shard(path: Path, file: h5py.File, sidecar: Sidecar, classes: int) -> Shard:
    """Read the small arrays of a file, checked against each other and the sidecar.

    Args:
        path: of the HDF5 file.
        file: which it is, open.
        sidecar: of that file.
        classes: C, how many there are.

    Raises:
        ValueError: anything that does not fit.
    """
    if get_text(file, "format") not in (None, f"wsssfast.{sidecar.kind}"):  # None: before 0.1
        raise ValueError("it is of another kind than its sidecar")
    n = len(sidecar.ids)
    names = read_array(file, "ids", "S", (n,))
    if [name.decode() for name in names.tolist()] != list(sidecar.ids):
        raise ValueError("its ids are not those of the sidecar")
    shard = Shard(
        path,
        read_array(file, "image_size", "int32", (n, 2)),
        read_array(file, "label_offsets", "int64", (n + 1,)),
        read_array(file, "labels", "uint8", (None,)),
    )
    if (shard.image_size <= 0).any() or (pixels(shard) > MOST_PIXELS).any():
        raise ValueError(f"its images do not have 1 to {MOST_PIXELS} pixels")
    lengths(shard.label_offsets, len(shard.labels))
    if shard.labels.max(initial=0) >= classes:
        raise ValueError(f"it has the class {shard.labels.max()} of {classes}")
    falls = np.flatnonzero(np.diff(shard.labels.astype(np.int64)) <= 0) + 1
    if not np.isin(falls, shard.label_offsets).all():
        raise ValueError("the labels of an image do not ascend")
    return shard


def pixels(shard: Shard) -> NDArray[np.int64]:
    """How many pixels each image has: int64 [n]."""
    found: NDArray[np.int64] = shard.image_size.astype(np.int64).prod(-1)
    return found


def ends(amounts: Sequence[int]) -> NDArray[np.int64]:
    """Offsets int64 [n + 1] of n runs that lie end to end."""
    return np.cumsum([0, *amounts], dtype=np.int64)


def lengths(offsets: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Lengths int64 [n] of the n runs between offsets, which must lie end to end from 0 to total.

    Raises:
        ValueError: they do not.
    """
    if offsets[0] != 0 or offsets[-1] != total or (offsets[1:] < offsets[:-1]).any():
        raise ValueError("its offsets do not fit one another")
    return np.diff(offsets)
