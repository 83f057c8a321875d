"""What every export into shards shares: a folder continued or refused, and what was done."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsssfast.errors import WsssError
from wsssfast.files import require_empty, telling_no_room
from wsssfast.shards import lock
from wsssfast.shards.format import (
    KINDS,
    Sidecar,
    kinds_in,
    read_sidecar,
    remove_shards,
    require_same_identity,
    shard_stem,
    sidecars,
)


@dataclass
class ExportSummary:
    """What an export did.

    Attributes:
        images: how many the shards hold now.
        skipped_shards: how many were done already.
        written_shards: how many this run wrote.
        others_shards: how many other workers had in hand.
        bytes: size of all shards and sidecars.
        failed: id -> reason of images that could not be done.
    """

    images: int = 0
    skipped_shards: int = 0
    written_shards: int = 0
    others_shards: int = 0
    bytes: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, shard: Sidecar, *, written: bool) -> None:
        """Count a shard that this run wrote or found done."""
        self.written_shards += written
        self.skipped_shards += not written
        self.images += len(shard.ids)
        self.failed.update(shard.failed)


def done_shards(
    out: Path,
    kind: str,
    identity: dict[str, Any],
    *,
    resume: bool = True,
    overwrite: bool = False,
    alone: bool = True,
) -> dict[int, Sidecar]:
    """The shards of a locked folder that are done; it is emptied of shards where asked, or refused.

    Args:
        out: folder of the shards.
        kind: of `KINDS`.
        identity: of the shards to come.
        resume: whether a folder that holds shards of this identity is continued.
        overwrite: discard the shards of this kind in `out` first.
        alone: whether no other worker is there; what killed runs left half written is removed.

    Returns:
        Number of each shard that is done -> its sidecar.

    Raises:
        WsssError: `out` holds another identity or kind, or is not to be continued.
    """
    others = " and ".join(KINDS[found][0] for found in kinds_in(out) if found != kind)
    if others:
        raise WsssError(
            f"Expected a folder for {KINDS[kind][0]} alone, found {others} in {out}.",
            "Choose another --out.",
        )
    if overwrite:
        remove_shards(out, kind)
    if alone:
        remove_unfinished(out, f"{kind}-*")
    if not resume:
        require_empty(out, besides=lock.NAME)
    done = {}
    for sidecar in sidecars(out, kind):
        require_same_identity(sidecar.identity, identity, out)
        if (out / f"{sidecar.stem}.h5").is_file():
            done[sidecar.index] = sidecar
    return done


def done_shard(out: Path, kind: str, index: int, count: int) -> Sidecar | None:
    """A shard as it is now, when another worker may have written it; None where it is not done."""
    stem = shard_stem(kind, index, count)
    if not (out / f"{stem}.json").is_file() or not (out / f"{stem}.h5").is_file():
        return None
    return read_sidecar(out / f"{stem}.json")


def remove_unfinished(out: Path, stems: str) -> None:
    """Remove what killed runs left half written of shards that nobody has in hand."""
    for path in out.glob(f".{stems}.*.partial"):
        path.unlink(missing_ok=True)


@contextmanager
def telling_full_disk(out: Path, summary: ExportSummary) -> Iterator[None]:
    """Turn what the system says of a full disk or a missing right into one clear error.

    Raises:
        WsssError: whatever inside could not be written.
    """
    done = f"{summary.written_shards} shards of this run are complete"
    with telling_no_room(f"in {out}", f"{done}; mend it and run the same command again."):
        yield
