"""Score shards: of many settings, the counts that the images of a shard add to their scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wsssfast.shards.format import Sidecar
from wsssfast.shards.safe_h5 import read_array
from wsssfast.shards.shard_file import Shard, write_shard
from wsssfast.shards.shard_set import ShardSet

Counts = NDArray[np.int64]
_MOST = 1 << 28  # counts of a file


@dataclass(frozen=True)
class ScoredImage:
    """An image whose pixels were counted.

    Attributes:
        id: of the image.
        image_size: (height, width) in pixels.
        labels: image-level labels, sorted, 0-based.
    """

    id: str
    image_size: tuple[int, int]
    labels: tuple[int, ...]


def write_score_shard(
    folder: str | Path,
    index: int,
    count: int,
    images: Sequence[ScoredImage],
    truth: Counts,
    seen: Counts,
    *,
    identity: dict[str, Any],
    failed: dict[str, str] | None = None,
    config: dict[str, Any] | None = None,
    versions: dict[str, str] | None = None,
) -> Sidecar:
    """Write one score shard and then its sidecar, as `write_shard` tells.

    Args:
        folder: an existing folder.
        index: of the shard, from 0.
        count: of all shards.
        images: that were counted.
        truth: int64 [C + 1], as of `CamScorer`.
        seen: int64 [S, 3, C, levels], of each setting; levels is one more than the thresholds.
        identity: as of `write_label_shard`; holds `settings` and `thresholds` too.
        failed: id -> reason of the images that are missing.
        config: resolved options, for the record.
        versions: of packages, for the record.

    Raises:
        WsssError: what readers would refuse.
        OSError: no such folder, or the disk is full or not writable.
    """

    def add(file: h5py.File, images: Sequence[ScoredImage]) -> None:
        file["truth"] = truth
        file.create_dataset("seen", data=seen, compression="gzip", compression_opts=1, shuffle=True)

    return write_shard(
        folder, "scores", index, count, images, add, identity=ScoreShards.known(identity),
        failed=failed, config=config, versions=versions,
    )  # fmt: skip


@dataclass(frozen=True)
class ScoreShard(Shard):
    """One score shard.

    Attributes:
        truth: int64 [C + 1].
        seen: int64 [S, 3, C, levels].
    """

    truth: Counts
    seen: Counts


class ScoreShards(ShardSet[ScoreShard]):
    """A set of score shards, whose counts add up."""

    kind = "scores"
    identity_keys = "class_names, settings and thresholds"

    def counts(self) -> tuple[Counts, Counts]:
        """`truth` and `seen` of all images together.

        Raises:
            WsssError: a damaged file.
        """
        shape = self._shape(self.identity)
        truth, seen = np.zeros(shape[2] + 1, np.int64), np.zeros(shape, np.int64)
        for sidecar in self.sidecars.values():
            if sidecar.ids:
                shard = self._open(sidecar)  # and not kept: together they would be half a gigabyte
                truth += shard.truth
                seen += shard.seen
        return truth, seen

    def check(self, image_id: str) -> None:
        """Read the counts of an image's shard.

        Raises:
            WsssError: an unknown id or a damaged file.
        """
        self._find(image_id)

    @classmethod
    def knows(cls, identity: dict[str, Any]) -> bool:
        """Whether an identity has the keys that reading depends on."""
        lists = all(isinstance(identity.get(key), list) for key in ("settings", "thresholds"))
        return super().knows(identity) and lists and prod(cls._shape(identity)) <= _MOST

    @staticmethod
    def _shape(identity: dict[str, Any]) -> tuple[int, int, int, int]:
        classes, levels = len(identity["class_names"]), len(identity["thresholds"]) + 1
        return len(identity["settings"]), 3, classes, levels

    def _read(self, file: h5py.File, shard: Shard) -> ScoreShard:
        shape = self._shape(self.identity)
        truth = read_array(file, "truth", "int64", (shape[2] + 1,))
        seen = read_array(file, "seen", "int64", shape)
        if min(truth.min(), seen.min()) < 0:
            raise ValueError("it has counts below 0")
        return ScoreShard(**vars(shard), truth=truth, seen=seen)
