"""Write CAM shards: small patch-grid maps of each image's own classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wsssfast.errors import BadFile, WsssError
from wsssfast.shards.format import Sidecar
from wsssfast.shards.reader import CamShards
from wsssfast.shards.shard_file import ends, write_shard

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

    Raises:
        WsssError: maps of another type or shape.
        BadFile: maps that are not finite, or have values below 0.
    """

    id: str
    image_size: tuple[int, int]
    labels: tuple[int, ...]
    grids: dict[str, list[Grid]]

    def __post_init__(self) -> None:
        for grid in (grid for grids in self.grids.values() for grid in grids):
            self._require_form(grid)
            if not np.isfinite(grid).all():
                raise BadFile("its CAM is not finite")
            if (grid < 0).any():
                raise BadFile(f"its CAM has values below 0, such as {grid.min():.3g}")

    def _require_form(self, grid: Any) -> None:
        wanted, known = len(self.labels), isinstance(grid, np.ndarray)
        if not known or grid.dtype != np.float32 or grid.ndim != 3 or len(grid) != wanted:
            told = f"{grid.dtype} {list(grid.shape)}" if known else type(grid).__name__
            raise WsssError(
                f"Expected maps of {self.id} as numpy arrays float32 [{wanted}, h, w], found "
                f"{told}."
            )


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
    folder: str | Path,
    index: int,
    count: int,
    records: Sequence[CamRecord],
    *,
    epsilons: dict[str, float],
    identity: dict[str, Any],
    failed: dict[str, str] | None = None,
    config: dict[str, Any] | None = None,
    versions: dict[str, str] | None = None,
) -> Sidecar:
    """Write one CAM shard and then its sidecar; both appear complete or not at all.

    A shard of this index and count that is there is replaced, as a run that resumes needs it.

    Args:
        folder: an existing folder.
        index: of the shard, from 0.
        count: of all shards.
        records: in the order to be stored, each image once.
        epsilons: per stage, the epsilon of the min-max of method §5, above 0.
        identity: what the numbers depend on, the same for all shards of the folder; holds
            `class_names`, `stages` and `scales`.
        failed: id -> reason of the images that are missing.
        config: resolved options, for the record.
        versions: of packages, for the record.

    Raises:
        WsssError: what readers would refuse: labels that are no class, an id twice, maps that are
            not of these stages and scales, no `class_names`.
        OSError: no such folder, or the disk is full or not writable.
    """
    identity = CamShards.known(identity)
    stages, scales = identity["stages"], len(identity["scales"])
    for stage in stages:
        if not 0 < epsilons.get(stage, 0) < np.inf:
            raise WsssError(f"Expected an epsilon above 0 of each stage, found {epsilons}.")
    for record in records:
        _require_maps(record, stages, scales)

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

    return write_shard(
        folder, "cams", index, count, records, add, identity=identity, failed=failed, config=config,
        versions=versions,
    )  # fmt: skip


def _require_maps(record: CamRecord, stages: list[str], scales: int) -> None:
    """Refuse a record without maps of the same sizes in each stage, one a scale."""
    found = {stage: [g.shape[1:] for g in record.grids.get(stage, ())] for stage in stages}
    sizes = found[stages[0]]
    if len(sizes) != scales or not np.all(sizes) or any(s != sizes for s in found.values()):
        told = ", ".join(f"{stage} {list(map(list, found[stage]))}" for stage in stages)
        raise WsssError(
            f"Expected maps of {scales} scales, of the same sizes in each stage, of {record.id}, "
            f"found {told}."
        )


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
