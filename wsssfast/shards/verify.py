"""Check shards against their checksums, and say what is there and what is missing."""

from dataclasses import dataclass, field
from pathlib import Path

from wsssfast.errors import WsssError
from wsssfast.shards.format import Sidecar, damage_of, kind_of, read_sidecar, shard_stem
from wsssfast.shards.reader import open_shards


@dataclass
class Verdict:
    """Result of `verify_shards`.

    Attributes:
        shards: how many were checked.
        images: how many images they hold.
        failed: id -> reason, as the export recorded them.
        missing: names of shards that are not done, or damaged.
        problems: one line for each thing that is wrong.
    """

    shards: int = 0
    images: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def verify_shards(folder: str | Path) -> Verdict:
    """Read every byte of every shard in a folder; any flipped one is found.

    Args:
        folder: where they lie, a path or its text.

    Raises:
        WsssError: no such folder, no shards in it, or shards of several kinds.
    """
    folder = Path(folder)
    kind = kind_of(folder)
    verdict = Verdict()
    good: list[Sidecar] = []
    for path in sorted(folder.glob(f"{kind}-*-of-*.json")):
        try:
            sidecar = read_sidecar(path)
        except WsssError as error:
            verdict.problems.append(error.message)
            continue
        if not (folder / f"{sidecar.stem}.h5").exists():
            continue  # as missing as if it had no sidecar
        verdict.shards += 1
        verdict.images += len(sidecar.ids)
        verdict.failed.update(sidecar.failed)
        problem = damage_of(folder, sidecar)
        if problem:
            verdict.problems.append(f"{sidecar.stem}.h5: {problem}")
        else:
            good.append(sidecar)
    counts = {s.count for s in good}
    if len(counts) > 1 or any(s.identity != good[0].identity for s in good):
        verdict.problems.append("shards of several configurations are mixed")
    elif good:
        done = {s.index for s in good}
        absent = sorted(set(range(good[0].count)) - done)
        verdict.missing = [shard_stem(kind, i, good[0].count) for i in absent]
        seen: set[str] = set()
        for sidecar in good:
            for image_id in sidecar.ids:
                if image_id in seen:
                    verdict.problems.append(f"{sidecar.stem}: {image_id} is there twice")
                seen.add(image_id)
    if not verdict.problems:
        verdict.problems += _check_structure(folder)
    return verdict


def _check_structure(folder: Path) -> list[str]:
    """Open the first image of each shard as a reader would."""
    problems = []
    shards = open_shards(folder)
    for sidecar in shards.sidecars.values():
        try:
            for image_id in sidecar.ids[:1]:
                shards.check(image_id)
        except WsssError as error:
            problems.append(error.message)
    return problems
