"""Write CAM shards: small patch-grid maps of each image's own classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import h5py
import numpy as np
from numpy.typing import NDArray

from wsssfast.errors import BadFile
from wsssfast.shards.format import Sidecar
from wsssfast.shards.shard_file import About, ends, write_shard

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


def as_stored(maps: Grid) -> Grid:
    """Maps float32 [K, h, w] as a reader of the shard gets them back."""
    stored = [quantise(one) for one in maps]
    return np.stack([steps * size for steps, size in stored]) if stored else maps


def write_cam_shard(
    folder: Path,
    index: int,
    count: int,
    records: Sequence[CamRecord],
    *,
    epsilons: dict[str, float],
    **about: Unpack[About],
) -> Sidecar:
    """Write one CAM shard and then its sidecar, as `write_shard` tells.

    Args:
        folder: an existing folder.
        index: of the shard, from 0.
        count: of all shards.
        records: in the order to be stored.
        epsilons: per stage, the epsilon of the min-max of method §5.
        **about: as `About` tells; the identity holds `stages` and `scales`.

    Raises:
        OSError: the disk is full or not writable.
    """
    stages, scales = about["identity"]["stages"], len(about["identity"]["scales"])

    def add(file: h5py.File, records: Sequence[CamRecord]) -> None:
        sizes = [[grid.shape[1:] for grid in record.grids[stages[0]]] for record in records]
        file["grid_size"] = np.array(sizes, dtype=np.int32).reshape(-1, scales, 2)
        areas = [sum(h * w for h, w in per_scale) for per_scale in sizes]
        counts = [len(record.labels) for record in records]
        file["value_offsets"] = ends([k * area for k, area in zip(counts, areas, strict=True)])
        for stage in stages:
            steps, step_sizes = _flatten(records, stage)
            group = file.create_group(f"stages/{stage}")
            group.attrs["epsilon"] = epsilons[stage]
            group["scale"] = step_sizes.reshape(-1, scales)
            chunk = {"chunks": (min(_CHUNK, steps.size),)} if steps.size else {}
            packed = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
            group.create_dataset("values", data=steps, **chunk, **(packed if chunk else {}))

    return write_shard(folder, "cams", index, count, records, add, **about)


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
