"""Label shards: a mask of each image, compressed on its own."""

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import finalize

import h5py
import numpy as np
from numpy.typing import NDArray

from wsssfast.data.dataset import IGNORE, Mask, odd_values
from wsssfast.errors import WsssError
from wsssfast.shards.format import Sidecar
from wsssfast.shards.require import as_mask
from wsssfast.shards.safe_h5 import MOST_DEFLATE, get_dataset, read_array, shard_errors
from wsssfast.shards.shard_file import Shard, ends, lengths, pixels, write_shard
from wsssfast.shards.shard_set import ShardSet


@dataclass(frozen=True)
class LabelRecord:
    """The mask of one image.

    Attributes:
        id: of the image.
        image_size: (height, width) in pixels.
        labels: image-level labels, sorted, 0-based.
        packed: the mask's bytes, row by row, as one zlib stream.
        highest: its largest value below 255.
    """

    id: str
    image_size: tuple[int, int]
    labels: tuple[int, ...]
    packed: bytes
    highest: int

    @classmethod
    def of(cls, image_id: str, labels: Sequence[int], mask: Mask) -> "LabelRecord":
        """The record of a mask.

        Args:
            image_id: of the image; text fit for a file name.
            labels: image-level labels, ascending, 0-based.
            mask: uint8 [H, W], or any integers: 0 background, class + 1, 255 ignore.

        Raises:
            WsssError: a mask of another type or shape, or of values beyond 0 to 255.
        """
        mask = as_mask(mask, f"the mask of {image_id}")
        height, width = mask.shape
        packed = zlib.compress(mask.tobytes())
        highest = int((mask + np.uint8(1)).max(initial=1)) - 1  # 255 becomes 0
        return cls(image_id, (height, width), tuple(labels), packed, highest)


def write_label_shard(
    folder: str | Path,
    index: int,
    count: int,
    records: Sequence[LabelRecord],
    *,
    identity: dict[str, Any],
    failed: dict[str, str] | None = None,
    config: dict[str, Any] | None = None,
    versions: dict[str, str] | None = None,
) -> Sidecar:
    """Write one label shard and then its sidecar; both appear complete or not at all.

    A shard of this index and count that is there is replaced, as a run that resumes needs it.

    Args:
        folder: an existing folder.
        index: of the shard, from 0.
        count: of all shards.
        records: in the order to be stored, each image once.
        identity: what the numbers depend on, the same for all shards of the folder; holds
            `class_names`, the C foreground classes.
        failed: id -> reason of the images that are missing.
        config: resolved options, for the record.
        versions: of packages, for the record.

    Raises:
        WsssError: what readers would refuse: labels or mask values that are no class, an id twice,
            no `class_names`.
        OSError: no such folder, or the disk is full or not writable.
    """
    identity = LabelShards.known(identity)
    classes = len(identity["class_names"])
    for record in records:
        if record.highest > classes:
            raise WsssError(
                f"Expected mask values up to {classes} and 255 in the mask of {record.id}, found "
                f"{record.highest}.",
                "0 is background, class + 1 a class, 255 ignore.",
            )
    return write_shard(
        folder, "labels", index, count, records, _add_masks, identity=identity, failed=failed,
        config=config, versions=versions,
    )  # fmt: skip


def _add_masks(file: h5py.File, records: Sequence[LabelRecord]) -> None:
    file["offsets"] = ends([len(record.packed) for record in records])
    file["data"] = np.frombuffer(b"".join(record.packed for record in records), np.uint8)


class _OpenFile:
    """A file to read from at any place, in any thread and forked process; closed when dropped."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        finalize(self, os.close, self._descriptor)

    def read(self, start: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, start)


@dataclass(frozen=True)
class LabelShard(Shard):
    """One label shard.

    Attributes:
        offsets: int64 [n + 1], where in the file the bytes of each mask begin and end.
        content: of the file; HDF5 would be ten times slower and hold a lock for all threads.
    """

    offsets: NDArray[np.int64]
    content: _OpenFile


class LabelShards(ShardSet[LabelShard]):
    """A set of label shards, read by image id: `LabelShards("labels").mask("im0")`."""

    kind = "labels"
    identity_keys = f"class_names, at most {IGNORE - 1}"

    def mask(self, image_id: str) -> Mask:
        """The mask of an image.

        Returns:
            uint8 [H, W], a copy: 0 background, 1 to C a class + 1, 255 ignore.

        Raises:
            WsssError: an unknown id or a damaged file.
        """
        shard, n = self._find(image_id)
        start, end = shard.offsets[n : n + 2].tolist()
        with shard_errors(shard.path):
            packed = shard.content.read(start, end - start)
            mask = _unpack(packed, shard.size_of(n))
            if odd_values(mask, len(self.class_names)).size:
                raise ValueError(f"the mask of {image_id} has values that are no class")
        return mask

    def check(self, image_id: str) -> None:
        """Read the mask of an image.

        Raises:
            WsssError: an unknown id or a damaged file.
        """
        self.mask(image_id)

    @classmethod
    def knows(cls, identity: dict[str, Any]) -> bool:
        """Whether an identity has the keys that reading depends on."""
        return super().knows(identity) and len(identity["class_names"]) < IGNORE

    def _read(self, file: h5py.File, shard: Shard) -> LabelShard:
        data = get_dataset(file, "data", "uint8", (None,))
        offsets = read_array(file, "offsets", "int64", (len(shard.image_size) + 1,))
        if (pixels(shard) > MOST_DEFLATE * lengths(offsets, len(data))).any():
            raise ValueError("its masks are too short for its images")
        begin = data.id.get_offset() if len(data) else 0
        if begin is None:
            raise ValueError("data is not stored in one piece")
        return LabelShard(**vars(shard), offsets=offsets + begin, content=_OpenFile(shard.path))


def _unpack(packed: bytes, size: tuple[int, int]) -> Mask:
    """The mask [H, W] of a zlib stream that must hold just that, which is all that is unpacked.

    Raises:
        ValueError: it holds more or less.
        zlib.error: no zlib stream.
    """
    stream = zlib.decompressobj()
    flat = stream.decompress(packed, size[0] * size[1] + 1)
    if len(flat) != size[0] * size[1] or not stream.eof or stream.unused_data:
        raise ValueError(f"a mask is not of {size[0]} x {size[1]} pixels")
    return np.frombuffer(flat, np.uint8).reshape(size).copy()
