"""Read CAM shards by image id."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from wsssfast import kernels
from wsssfast.data.dataset import require_safe_ids
from wsssfast.errors import WsssError, listing
from wsssfast.shards.format import sidecars
from wsssfast.shards.safe_h5 import get_dataset, get_text, open_h5, read_array

Grid = NDArray[np.float32]


class Grids(NamedTuple):
    """The stored maps of one image.

    Attributes:
        labels: int64 [K], sorted 0-based classes.
        image_size: (height, width).
        grids: per scale float32 [K, h, w].
        epsilon: of the min-max.
    """

    labels: NDArray[np.int64]
    image_size: tuple[int, int]
    grids: list[Grid]
    epsilon: float


class _Index(NamedTuple):
    """The small arrays of one shard file."""

    image_size: NDArray[np.int32]
    grid_size: NDArray[np.int32]
    label_offsets: NDArray[np.int64]
    labels: NDArray[np.uint8]
    value_offsets: NDArray[np.int64]


class CamShards:
    """A set of CAM shards, read by image id.

    Attributes:
        folder: where it lies.
        ids: every stored image, sorted by shard.
        identity: the configuration that made the numbers.
        failed: id -> reason, of images that the export could not read.
        missing_shards: numbers of shards that are not done yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = list(sidecars(folder, "cams"))
        if not found:
            raise WsssError(
                f"Expected CAM shards in {folder}, found none.",
                "Make them with `wsssfast export-cams`.",
            )
        counts = sorted({s.count for s in found})
        if len(counts) > 1 or any(s.identity != found[0].identity for s in found):
            raise WsssError(f"Expected one set of shards in {folder}, found several mixed.")
        self.identity: dict[str, Any] = found[0].identity
        _require_identity(self.identity, folder)
        self.missing_shards = sorted(set(range(counts[0])) - {s.index for s in found})
        self.failed = {i: reason for s in found for i, reason in s.failed.items()}
        self._shards = {s.index: s for s in found}
        self._place = {i: (s.index, n) for s in found for n, i in enumerate(s.ids)}
        self.ids = tuple(self._place)
        require_safe_ids(self.ids)
        self._index = lru_cache(maxsize=64)(self._read_index)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The C classes."""
        return tuple(self.identity["class_names"])

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages stored."""
        return tuple(self.identity["stages"])

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def require_stage(self, stage: str) -> None:
        """Refuse a stage that is not stored.

        Raises:
            WsssError: it is none of `stages`.
        """
        if stage not in self.stages:
            raise WsssError(
                f"Expected a stage out of {', '.join(self.stages)} in {self.folder}, found "
                f"{stage!r}.",
                "Export it with --stage.",
            )

    def grids(self, image_id: str, stage: str | None = None) -> Grids:
        """The stored patch-grid maps of an image.

        Args:
            image_id: one of `ids`.
            stage: one of `stages`; the last stored where None.

        Raises:
            WsssError: an unknown id or stage, or a damaged file.
        """
        stage = self.stages[-1] if stage is None else stage
        self.require_stage(stage)
        if image_id not in self._place:
            raise WsssError(
                f"Expected an image of the shards in {self.folder}, found {image_id!r}."
            )
        number, n = self._place[image_id]
        index = self._index(number)
        labels = index.labels[index.label_offsets[n] : index.label_offsets[n + 1]]
        sizes = index.grid_size[n].tolist()
        with open_h5(self.folder / f"{self._shards[number].stem}.h5") as file:
            values = get_dataset(file, f"stages/{stage}/values", "uint16", 1)
            flat = values[index.value_offsets[n] : index.value_offsets[n + 1]].astype(np.float32)
            scale = get_dataset(file, f"stages/{stage}/scale", "float32", 2)
            steps = scale[index.label_offsets[n] : index.label_offsets[n + 1]]
            epsilon = float(file["stages"][stage].attrs["epsilon"])
            table = flat.reshape(len(labels), sum(h * w for h, w in sizes))
            grids, start = [], 0
            for s, (h, w) in enumerate(sizes):
                part = table[:, start : start + h * w].reshape(-1, h, w)
                grids.append(part * steps[:, s, None, None])
                start += h * w
        height, width = index.image_size[n].tolist()
        return Grids(labels.astype(np.int64), (height, width), grids, epsilon)

    def cam(
        self, image_id: str, stage: str | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Full-size normalised CAM of an image: upsampled, summed over scales, min-max.

        Returns:
            labels int64 [K] (0-based, sorted) and maps float32 [K, H, W] in [0, 1].
        """
        labels, size, grids, epsilon = self.grids(image_id, stage)
        return labels, full_size(grids, size, epsilon)

    def mask(self, image_id: str, threshold: float, stage: str | None = None) -> NDArray[np.uint8]:
        """Segmentation at a background threshold: argmax, ties to background.

        Returns:
            uint8 [H, W]: 0 background, class + 1.
        """
        labels, maps = self.cam(image_id, stage)
        if len(labels) == 0:
            return np.zeros(maps.shape[1:], np.uint8)
        best = maps.argmax(0)
        above = maps.max(0) > np.float32(threshold)
        return np.where(above, labels[best] + 1, 0).astype(np.uint8)

    def _read_index(self, number: int) -> _Index:
        """Small arrays of a shard, checked against each other and the sidecar."""
        sidecar = self._shards[number]
        with open_h5(self.folder / f"{sidecar.stem}.h5") as file:
            if get_text(file, "format") != "wsssfast.cams":
                raise ValueError("it is not a CAM shard")
            names = read_array(file, "ids", "S", 1)
            index = _Index(
                read_array(file, "image_size", "int32", 2),
                read_array(file, "grid_size", "int32", 3),
                read_array(file, "label_offsets", "int64", 1),
                read_array(file, "labels", "uint8", 1),
                read_array(file, "value_offsets", "int64", 1),
            )
            n, scales = len(sidecar.ids), len(self.identity["scales"])
            if [name.decode() for name in names.tolist()] != list(sidecar.ids):
                raise ValueError("its ids are not those of the sidecar")
            shapes = {
                "image_size": (index.image_size.shape, (n, 2)),
                "grid_size": (index.grid_size.shape, (n, scales, 2)),
                "label_offsets": (index.label_offsets.shape, (n + 1,)),
                "value_offsets": (index.value_offsets.shape, (n + 1,)),
            }
            wrong = [name for name, (found, wanted) in shapes.items() if found != wanted]
            if wrong:
                raise ValueError(f"{listing(wrong)} has another length than the ids")
            counts = np.diff(index.label_offsets)
            areas = index.grid_size.astype(np.int64).prod(-1).sum(-1)
            consistent = (
                (index.image_size > 0).all()
                and (index.grid_size > 0).all()
                and index.label_offsets[0] == 0
                and (counts >= 0).all()
                and index.label_offsets[-1] == len(index.labels)
                and index.value_offsets[0] == 0
                and np.array_equal(np.diff(index.value_offsets), counts * areas)
                and (len(index.labels) == 0 or index.labels.max() < len(self.class_names))
            )
            if not consistent:
                raise ValueError("its offsets do not fit one another")
        return index


def _require_identity(identity: dict[str, Any], folder: Path) -> None:
    """Refuse an identity without the keys that reading depends on."""
    names, stages, scales = (identity.get(k) for k in ("class_names", "stages", "scales"))
    lists = all(isinstance(value, list) and value for value in (names, stages, scales))
    if not lists or not set(map(str, stages or ())) <= set(kernels.STAGES):
        raise WsssError(f"Expected the configuration of CAM shards in {folder}, found another one.")


def full_size(grids: list[Grid], size: tuple[int, int], epsilon: float) -> NDArray[np.float32]:
    """Patch-grid maps per scale [K, h, w] -> normalised maps [K, H, W] (method §5)."""
    if grids[0].shape[0] == 0:
        return np.zeros((0, *size), np.float32)
    return kernels.full_size_cam([torch.from_numpy(g) for g in grids], size, epsilon).numpy()


def open_shards(folder: str | Path) -> CamShards:
    """Open a folder of shards.

    Raises:
        WsssError: no shards there, or mixed or damaged ones.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise WsssError(f"Expected a folder of shards at {folder}, found none.")
    return CamShards(folder)
