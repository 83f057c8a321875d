"""Read CAM shards by image id, and open shards of any kind."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from wsssfast import kernels
from wsssfast.data.dataset import Mask
from wsssfast.errors import WsssError
from wsssfast.shards.format import kind_of
from wsssfast.shards.label_shards import LabelShards
from wsssfast.shards.safe_h5 import get_dataset, get_number, open_h5, read_array
from wsssfast.shards.score_shards import ScoreShards
from wsssfast.shards.shard_file import Shard, lengths
from wsssfast.shards.shard_set import ShardSet
from wsssfast.threshold import background_scores, threshold

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


@dataclass(frozen=True)
class CamShard(Shard):
    """The small arrays of one CAM shard.

    Attributes:
        grid_size: int32 [n, S, 2], height and width of each scale's map.
        value_offsets: int64 [n + 1], where the values of each image begin and end.
    """

    grid_size: NDArray[np.int32]
    value_offsets: NDArray[np.int64]


class CamShards(ShardSet[CamShard]):
    """A set of CAM shards, read by image id: `CamShards("cams").cam("im0")`."""

    kind = "cams"
    identity_keys = f"class_names, scales and stages out of {', '.join(kernels.STAGES)}"

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages stored."""
        return tuple(self.identity["stages"])

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
        shard, n = self._find(image_id)
        labels, sizes = shard.labels_of(n), shard.grid_size[n].tolist()
        with open_h5(shard.path) as file:
            total = int(shard.value_offsets[-1])
            values = get_dataset(file, f"stages/{stage}/values", "uint16", (total,))
            flat = values[shard.value_offsets[n] : shard.value_offsets[n + 1]].astype(np.float32)
            shape = (len(shard.labels), len(sizes))
            scale = get_dataset(file, f"stages/{stage}/scale", "float32", shape)
            steps = scale[shard.label_offsets[n] : shard.label_offsets[n + 1]]
            epsilon = get_number(file["stages"][stage], "epsilon")
            if not (np.isfinite(steps) & (steps >= 0)).all() or not 0 < epsilon < np.inf:
                raise ValueError(f"the scale or epsilon of {image_id} is no positive number")
        table = flat.reshape(len(labels), sum(h * w for h, w in sizes))
        grids, start = [], 0
        for s, (h, w) in enumerate(sizes):
            part = table[:, start : start + h * w].reshape(-1, h, w)
            grids.append(part * steps[:, s, None, None])
            start += h * w
        return Grids(labels, shard.size_of(n), grids, epsilon)

    def cam(
        self, image_id: str, stage: str | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Full-size normalised CAM of an image: upsampled, summed over scales, min-max.

        Args:
            image_id: one of `ids`.
            stage: one of `stages`; the last stored where None.

        Returns:
            labels int64 [K] (0-based, sorted) and maps float32 [K, H, W] in [0, 1].

        Raises:
            WsssError: an unknown id or stage, or a damaged file.
        """
        labels, size, grids, epsilon = self.grids(image_id, stage)
        return labels, full_size(grids, size, epsilon)

    def mask(
        self, image_id: str, background: float | tuple[float, ...], stage: str | None = None
    ) -> Mask:
        """Segmentation by one background threshold or two, as `threshold` tells.

        Args:
            image_id: one of `ids`.
            background: score in [0, 1] up to which a pixel is background; two, low < high: pixels
                above low and up to high become 255 (ignore).
            stage: one of `stages`; the last stored where None.

        Returns:
            uint8 [H, W]: 0 background, 1 to C a class + 1, 255 between two thresholds.

        Raises:
            WsssError: other scores, an unknown id or stage, or a damaged file.
        """
        cuts = background_scores(background)
        return threshold(*self.cam(image_id, stage), cuts)

    def check(self, image_id: str) -> None:
        """Read every stage of an image.

        Raises:
            WsssError: an unknown id or a damaged file.
        """
        for stage in self.stages:
            self.grids(image_id, stage)

    @classmethod
    def knows(cls, identity: dict[str, Any]) -> bool:
        """Whether an identity has the keys that reading depends on."""
        stages, scales = identity.get("stages"), identity.get("scales")
        lists = all(isinstance(value, list) and value for value in (stages, scales))
        known = lists and set(map(str, stages or ())) <= set(kernels.STAGES)
        return known and super().knows(identity)

    def _read(self, file: h5py.File, shard: Shard) -> CamShard:
        n, scales = len(shard.image_size), len(self.identity["scales"])
        found = CamShard(
            **vars(shard),
            grid_size=read_array(file, "grid_size", "int32", (n, scales, 2)),
            value_offsets=read_array(file, "value_offsets", "int64", (n + 1,)),
        )
        areas = found.grid_size.astype(np.int64).prod(-1).sum(-1)
        amounts = lengths(found.value_offsets, found.value_offsets[-1])
        counts = np.diff(found.label_offsets)
        if (found.grid_size <= 0).any() or not np.array_equal(amounts, counts * areas):
            raise ValueError("its maps do not have the sizes that it tells")
        return found


def full_size(grids: list[Grid], size: tuple[int, int], epsilon: float) -> NDArray[np.float32]:
    """Patch-grid maps per scale [K, h, w] -> normalised maps [K, H, W] (method §5)."""
    if grids[0].shape[0] == 0:
        return np.zeros((0, *size), np.float32)
    return kernels.full_size_cam([torch.from_numpy(g) for g in grids], size, epsilon).numpy()


def open_shards(folder: str | Path) -> CamShards | LabelShards | ScoreShards:
    """Open a folder of shards of any kind, which is told when it runs.

    Type checkers know the kind of `CamShards(folder)` and `LabelShards(folder)` alone.

    Args:
        folder: where they lie, a path or its text.

    Returns:
        `CamShards`, `LabelShards` or `ScoreShards`, as their files are named.

    Raises:
        WsssError: no shards there, or mixed or damaged ones.
    """
    folder = Path(folder)
    return _READERS[kind_of(folder)](folder)


_READERS: dict[str, type[CamShards | LabelShards | ScoreShards]] = {
    reader.kind: reader for reader in (CamShards, LabelShards, ScoreShards)
}
