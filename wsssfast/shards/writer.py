"""Write CAM shards: small patch-grid maps of each image's own classes."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wsssfast.errors import BadFile
from wsssfast.shards.format import (
    FORMAT_VERSION,
    Sidecar,
    canonical,
    publish,
    sha256_of,
    shard_stem,
    write_sidecar,
)

Grid = NDArray[np.float32]
_LEVELS = 65535  # a map's maximum; its values are whole steps of maximum / 65535
_CHUNK = 1 << 16


@dataclass(frozen=True)
class CamRecord:
    """The CAM of one image.

    Attributes:
        id: of the image.
        image_size: (height, width) in pixels.
        labels: the classes of the maps, sorted, 0-based.
        grids: stage -> per scale float32 [K, h, w], K = len(labels), values >= 0, flips summed.
    """

    id: str
    image_size: tuple[int, int]
    labels: tuple[int, ...]
    grids: dict[str, list[Grid]]

    def __post_init__(self) -> None:
        for grids in self.grids.values():
            if not all(np.isfinite(grid).all() and (grid >= 0).all() for grid in grids):
                raise BadFile("its CAM is not finite")


def quantise(values: Grid) -> tuple[NDArray[np.uint16], np.float32]:
    """A map as whole steps of its own scale: error at most half a step, 7.7e-6 of the maximum.

    Args:
        values: float32, >= 0, any shape.

    Returns:
        uint16 steps of that shape, and the float32 step; 0 for a map of zeros.
    """
    step = np.float32(values.max(initial=0) / _LEVELS)
    if step == 0:
        return np.zeros(values.shape, np.uint16), np.float32(0)
    steps = np.rint(values.astype(np.float64) / np.float64(step))
    return np.minimum(steps, _LEVELS).astype(np.uint16), step


def write_cam_shard(
    folder: Path,
    index: int,
    count: int,
    records: Sequence[CamRecord],
    *,
    failed: dict[str, str],
    identity: dict[str, Any],
    epsilons: dict[str, float],
    config: dict[str, Any],
    versions: dict[str, str],
) -> Sidecar:
    """Write one shard and then its sidecar; both appear complete or not at all.

    Args:
        folder: an existing folder.
        index: of the shard, from 0.
        count: of all shards.
        records: in the order to be stored.
        failed: id -> reason of the images that are missing.
        identity: configuration identity of the set; holds `stages` and `scales`.
        epsilons: per stage, the epsilon of the min-max of method §5.
        config: resolved options, for the record.
        versions: of packages.

    Raises:
        OSError: the disk is full or not writable.
    """
    path = folder / f"{shard_stem('cams', index, count)}.h5"
    path.with_suffix(".json").unlink(missing_ok=True)  # what it says is done no longer
    # HDF5 crashes when the disk is full as it closes a file: let it write to memory
    buffer = io.BytesIO()
    _write_h5(buffer, records, identity, epsilons)
    publish(path, lambda partial: partial.write_bytes(buffer.getbuffer()))
    sidecar = Sidecar(
        kind="cams",
        index=index,
        count=count,
        ids=tuple(record.id for record in records),
        failed=dict(sorted(failed.items())),
        identity=identity,
        config=config,
        versions=versions,
        file_bytes=path.stat().st_size,
        file_sha256=sha256_of(path),
    )
    write_sidecar(folder, sidecar)
    return sidecar


def _write_h5(
    buffer: io.BytesIO,
    records: Sequence[CamRecord],
    identity: dict[str, Any],
    epsilons: dict[str, float],
) -> None:
    stages, scales = identity["stages"], len(identity["scales"])
    first = stages[0]
    sizes = [[grid.shape[1:] for grid in record.grids[first]] for record in records]
    pixels = [sum(h * w for h, w in per_scale) for per_scale in sizes]
    labels = [len(record.labels) for record in records]
    amounts = [k * p for k, p in zip(labels, pixels, strict=True)]
    with h5py.File(buffer, "w") as file:
        file.attrs["format"] = "wsssfast.cams"
        file.attrs["version"] = FORMAT_VERSION
        file.attrs["identity"] = canonical(identity)
        names = [record.id.encode() for record in records]
        longest = max(map(len, names), default=1)
        file["ids"] = np.array(names, dtype=f"S{longest}")
        file["image_size"] = _table([r.image_size for r in records], (-1, 2))
        file["grid_size"] = _table(sizes, (-1, scales, 2))
        file["label_offsets"] = np.cumsum([0, *labels], dtype=np.int64)
        file["labels"] = np.array([c for r in records for c in r.labels], dtype=np.uint8)
        file["value_offsets"] = np.cumsum([0, *amounts], dtype=np.int64)
        for stage in stages:
            steps, step_sizes = _flatten(records, stage)
            group = file.create_group(f"stages/{stage}")
            group.attrs["epsilon"] = epsilons[stage]
            group["scale"] = step_sizes.reshape(-1, scales)
            chunk = {"chunks": (min(_CHUNK, steps.size),)} if steps.size else {}
            packed = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
            group.create_dataset("values", data=steps, **chunk, **(packed if chunk else {}))


def _flatten(
    records: Sequence[CamRecord], stage: str
) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
    """All maps of a stage end to end: image, then class, then scale."""
    steps: list[NDArray[np.uint16]] = [np.zeros(0, np.uint16)]
    sizes: list[np.float32] = []
    for record in records:
        for position in range(len(record.labels)):
            for grid in record.grids[stage]:
                quantised, size = quantise(grid[position])
                steps.append(quantised.ravel())
                sizes.append(size)
    return np.concatenate(steps), np.array(sizes, dtype=np.float32)


def _table(rows: object, shape: tuple[int, ...]) -> NDArray[np.int32]:
    return np.array(rows, dtype=np.int32).reshape(shape)
