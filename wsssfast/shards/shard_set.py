"""What the readers of all kinds of shards share: ids, identity, and the files' small arrays."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from wsssfast.data.dataset import require_safe_ids
from wsssfast.errors import WsssError
from wsssfast.shards.format import (
    KINDS,
    Sidecar,
    canonical,
    kinds_in,
    shard_stem,
    sidecars,
)
from wsssfast.shards.require import plain
from wsssfast.shards.safe_h5 import open_h5
from wsssfast.shards.shard_file import Shard, read_shard

_MOST_KEPT = 512  # shards; COCO has 161, and by default a process may have 1024 files open
S = TypeVar("S", bound=Shard)


class ShardSet(ABC, Generic[S]):
    """A folder of shards of one kind, read by image id, from any number of threads and processes.

    Args:
        folder: where it lies, a path or its text.

    Attributes:
        folder: where it lies.
        kind: of `KINDS`.
        ids: every stored image, sorted by shard.
        identity: the configuration that made the numbers.
        failed: id -> reason, of images that the export could not do.
        sidecars: number of each shard that is done -> what its sidecar says.
        missing_shards: numbers of shards that are not done yet.

    Raises:
        WsssError: no such shards there, or mixed or damaged ones.
    """

    kind: ClassVar[str]
    identity_keys: ClassVar[str] = "class_names"  # those that reading depends on

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        found = [one for one in sidecars(folder, self.kind) if (folder / f"{one.stem}.h5").exists()]
        if not found:
            name, maker = KINDS[self.kind]
            others = " and ".join(KINDS[kind][0] for kind in kinds_in(folder))
            raise WsssError(
                f"Expected {name} in {folder}, found {others or 'none'}.",
                f"Make them with `{maker}`.",
            )
        first = found[0]
        if any((s.count, s.identity) != (first.count, first.identity) for s in found):
            raise WsssError(f"Expected one set of shards in {folder}, found several mixed.")
        self.folder = folder
        self.identity: dict[str, Any] = first.identity
        if not self.knows(self.identity):
            raise WsssError(
                f"Expected the configuration of {KINDS[self.kind][0]} in {folder}, found another."
            )
        self._count = first.count
        self.sidecars = {s.index: s for s in found}
        self.missing_shards = sorted(set(range(self._count)) - self.sidecars.keys())
        self.failed = {i: reason for s in found for i, reason in s.failed.items()}
        self._place = {i: (s.index, n) for s in found for n, i in enumerate(s.ids)}
        self.ids = tuple(self._place)
        if len(self.ids) < sum(len(s.ids) for s in found):
            raise WsssError(
                f"Expected each image once in the shards in {folder}, found some in several.",
                "`wsssfast verify` names them.",
            )
        require_safe_ids(self.ids)
        self._kept: OrderedDict[int, S] = OrderedDict()

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return type(self), (self.folder,)

    @property
    def missing_names(self) -> list[str]:
        """The missing shards' file names, without extension."""
        return [shard_stem(self.kind, index, self._count) for index in self.missing_shards]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The C classes."""
        return tuple(self.identity["class_names"])

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def labels(self, image_id: str) -> NDArray[np.int64]:
        """Image-level labels of an image: int64 [K], sorted 0-based classes.

        Raises:
            WsssError: an unknown id or a damaged file.
        """
        shard, n = self._find(image_id)
        return shard.labels_of(n)

    def image_size(self, image_id: str) -> tuple[int, int]:
        """(height, width) of an image in pixels.

        Raises:
            WsssError: an unknown id or a damaged file.
        """
        shard, n = self._find(image_id)
        return shard.size_of(n)

    @abstractmethod
    def check(self, image_id: str) -> None:
        """Read all that is stored of an image.

        Raises:
            WsssError: an unknown id or a damaged file.
        """

    @classmethod
    def knows(cls, identity: dict[str, Any]) -> bool:
        """Whether an identity has the keys that reading depends on."""
        names = identity.get("class_names")
        return isinstance(names, list) and bool(names) and all(isinstance(n, str) for n in names)

    @classmethod
    def known(cls, identity: dict[str, Any]) -> dict[str, Any]:
        """An identity to be written, as it will be read.

        Raises:
            WsssError: it lacks keys that reading depends on, or holds what JSON has not.
        """
        found = plain("the identity", identity)
        if not cls.knows(found):
            raise WsssError(
                f"Expected an identity of {KINDS[cls.kind][0]} with {cls.identity_keys}, found "
                f"{canonical(found)[:200]}.",
                'Such as identity={"class_names": ["cat", "dog"], …}.',
            )
        return found

    @abstractmethod
    def _read(self, file: h5py.File, shard: Shard) -> S:
        """The shard with what only this kind has, checked. Raises ValueError."""

    def _find(self, image_id: str) -> tuple[S, int]:
        """The shard of an image and the image's place in it.

        Raises:
            WsssError: an unknown id or a damaged file.
        """
        if image_id not in self._place:
            raise WsssError(
                f"Expected an image of the shards in {self.folder}, found {image_id!r}."
            )
        number, n = self._place[image_id]
        shard = self._kept.get(number)
        if shard is None:
            shard = self._open(self.sidecars[number])
            if len(self._kept) >= _MOST_KEPT:
                self._kept.popitem(last=False)
            self._kept[number] = shard
        return shard, n

    def _open(self, sidecar: Sidecar) -> S:
        """A shard that is not kept. Raises WsssError where its file is damaged."""
        path = self.folder / f"{sidecar.stem}.h5"
        with open_h5(path) as file:
            return self._read(file, read_shard(path, file, sidecar, len(self.class_names)))
