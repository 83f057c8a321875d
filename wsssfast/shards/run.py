"""One run, or one of several workers, that fills a folder of shards."""

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsssfast.errors import WsssError
from wsssfast.pace import Pace, Watch
from wsssfast.shards.format import Sidecar, canonical, damage_of, shard_stem, stored_bytes
from wsssfast.shards.lock import FolderLock, folder_lock
from wsssfast.shards.resume import (
    ExportSummary,
    done_shard,
    done_shards,
    remove_unfinished,
    telling_full_disk,
)


@dataclass(frozen=True)
class Filling:
    """How a run fills a folder of shards.

    Attributes:
        resume: whether a folder that holds shards of this configuration is continued.
        overwrite: discard the shards of this kind in it first; not with several workers.
        worker: (i, n), this is the i-th of n that share the folder, from 0.
        watch: told of what happens, as `Pace` tells: "begin", "images", "damaged", "shard", "end".
    """

    resume: bool = True
    overwrite: bool = False
    worker: tuple[int, int] = (0, 1)
    watch: Watch = lambda event, facts: None


ALONE = Filling()


class ShardRun:
    """Which shards are still to be done here, and what has been; made by `shard_run`.

    Attributes:
        summary: of what was done.
        pace: to be told of images that are finished.
    """

    def __init__(
        self,
        out: Path,
        kind: str,
        shards: dict[int, int],
        count: int,
        worker: tuple[int, int],
        lock: FolderLock,
        pace: Pace,
        done: dict[int, Sidecar],
    ) -> None:
        self.summary, self.pace, self._done = ExportSummary(), pace, done
        self._out, self._kind, self._shards, self._count = out, kind, shards, count
        self._worker, self._lock, self._counting = worker, lock, threading.Lock()

    def to_do(self, current: Callable[[int, Sidecar], bool]) -> Iterator[int]:
        """Numbers of shards that no other worker has in hand and that are not done.

        A worker begins with shards of its own, every n-th, and goes on with those that no other
        has begun: a slow or dead worker's are done by the others, or by the next run. What was done
        before this run is checked by the worker whose own it is, and done anew where its bytes are
        not those that were written.

        Args:
            current: whether a shard that was done before this run can stay as it is.
        """
        rank, workers = self._worker
        for index in sorted(self._shards, key=lambda n: (n % workers != rank, n)):
            if not self._lock.claim(index):
                continue
            finished = done_shard(self._out, self._kind, index, self._count)
            anew = finished != self._done.get(index)  # by another worker meanwhile
            if finished and not anew and index % workers == rank:
                damage = damage_of(self._out, finished)
                if damage:
                    self.pace.tell("damaged", shard=finished.stem, reason=damage)
                    finished = None
            if finished and (anew or current(index, finished)):
                with self._counting:
                    self.summary.add(finished, written=False)
                self.pace.advance(self._shards[index], len(finished.failed), before=True)
                self._lock.release(index)
            else:
                remove_unfinished(self._out, shard_stem(self._kind, index, self._count))
                yield index

    def write(self, index: int, make: Callable[[], Sidecar]) -> None:
        """Write a shard that was to be done, and let go of it.

        Raises:
            WsssError: the disk is full or not writable.
        """
        with telling_full_disk(self._out, self.summary):
            finished = make()
        self._lock.release(index)
        with self._counting:
            self.summary.add(finished, written=True)
        self.pace.tell("shard", index=index, unusable=finished.failed)


@contextmanager
def shard_run(
    out: Path,
    kind: str,
    identity: dict[str, Any],
    shards: dict[int, int],
    count: int,
    *,
    filling: Filling,
    begin: dict[str, Any],
) -> Iterator[ShardRun]:
    """Lock a folder, alone or with the other workers, and continue what is there.

    Args:
        out: folder of the shards; made where absent.
        kind: of `KINDS`.
        identity: of the shards to come.
        shards: number -> images of each shard that is to be there at the end.
        count: of all shards, those included that cannot be made yet.
        filling: how the folder is continued, shared and watched.
        begin: more facts of "begin".

    Raises:
        WsssError: `out` holds another identity, or another run is writing there.
    """
    rank, workers = filling.worker
    if not 0 <= rank < workers:
        raise WsssError(f"Expected a worker i/n with 0 <= i < n, found {rank}/{workers}.")
    if workers > 1 and (filling.overwrite or not filling.resume):
        raise WsssError("Expected --resume and no --overwrite of several workers in one folder.")
    purpose = hashlib.sha256(canonical(identity).encode()).hexdigest() if workers > 1 else ""
    with folder_lock(out, purpose) as lock:
        done = done_shards(
            out, kind, identity, resume=filling.resume, overwrite=filling.overwrite,
            alone=workers == 1,
        )  # fmt: skip
        before = _images(done.values())
        pace = Pace(sum(shards.values()), before, workers, filling.watch)
        run = ShardRun(out, kind, shards, count, filling.worker, lock, pace, done)
        pace.tell("begin", worker=f"{rank}/{workers}", shards=len(shards), **begin)
        yield run
    summary = run.summary
    summary.others_shards = len(shards) - summary.written_shards - summary.skipped_shards
    summary.bytes = stored_bytes(out, kind)
    told = {k: v for k, v in vars(summary).items() if k not in ("images", "failed")}
    pace.tell("end", **told)


def _images(done: Iterable[Sidecar]) -> int:
    return sum(len(sidecar.ids) + len(sidecar.failed) for sidecar in done)
