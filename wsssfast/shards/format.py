"""Names and sidecars of shards; the format itself is told in docs/shards.md."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsssfast.errors import WsssError, listing
from wsssfast.files import publish, sha256_of
from wsssfast.parse import json_of

FORMAT_VERSION = 1  # readers read every version up to their own
DEFAULT_SHARD_SIZE = 512
MOST_SHARDS = 99_999  # that names of five digits can tell apart
MOST_PIXELS = 1 << 28  # of an image; PIL itself refuses to decode more than 179 million
# kind -> how messages call it, and the command that makes it
KINDS = {
    "cams": ("CAM shards", "wsssfast export-cams"),
    "labels": ("label shards", "wsssfast export-labels"),
    "scores": ("score shards", "wsssfast ablate"),
}
_NAME = re.compile(
    rf"(?P<kind>{'|'.join(KINDS)})-(?P<index>\d{{5}})-of-(?P<count>\d{{5}})\.(json|h5)"
)

_FIELDS: dict[str, type] = {
    "kind": str, "index": int, "count": int, "ids": list, "failed": dict, "identity": dict,
    "config": dict, "versions": dict, "file_bytes": int, "file_sha256": str,
}  # fmt: skip


@dataclass(frozen=True)
class Sidecar:
    """What a shard's JSON file says; its existence means that the shard is done.

    Attributes:
        kind: of `KINDS`.
        index: number of this shard, from 0.
        count: number of shards of the whole set.
        ids: images of the shard, in the order of the HDF5 file.
        failed: id -> reason, for images that could not be read.
        identity: everything that changes the numbers (architecture.md §2).
        config: the resolved options of the run, for the record.
        versions: of the packages that made it.
        file_bytes: size of the HDF5 file.
        file_sha256: checksum of the HDF5 file.
    """

    kind: str
    index: int
    count: int
    ids: tuple[str, ...]
    failed: dict[str, str]
    identity: dict[str, Any]
    config: dict[str, Any]
    versions: dict[str, str]
    file_bytes: int
    file_sha256: str

    @property
    def stem(self) -> str:
        """File name without extension."""
        return shard_stem(self.kind, self.index, self.count)


def shard_stem(kind: str, index: int, count: int) -> str:
    """`cams-00007-of-00032`."""
    return f"{kind}-{index:05d}-of-{count:05d}"


def canonical(value: Any) -> str:
    """The one JSON text of a value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def write_sidecar(folder: Path, sidecar: Sidecar) -> None:
    """Publish a sidecar: the last act of writing a shard."""
    body = {"format": f"wsssfast.{sidecar.kind}", "version": FORMAT_VERSION, **vars(sidecar)}
    body["checksum"] = hashlib.sha256(canonical(body).encode()).hexdigest()
    publish(folder / f"{sidecar.stem}.json", lambda path: path.write_text(canonical(body) + "\n"))


def read_sidecar(path: Path) -> Sidecar:
    """Read and check one sidecar.

    Raises:
        WsssError: damaged, of another format, or of a later version.
    """
    match = _NAME.fullmatch(path.name)
    try:
        text = path.read_text(encoding="ascii")
        body = json_of(text)
        if not isinstance(body, dict):
            raise ValueError("it is no object")
        if text != canonical(body) + "\n":
            raise ValueError("its text was changed")
        checksum = body.pop("checksum")
        if checksum != hashlib.sha256(canonical(body).encode()).hexdigest():
            raise ValueError("its checksum does not fit")
        kind, version = body.pop("format"), body.pop("version")
        if match is None or kind != f"wsssfast.{body['kind']}" or body["kind"] != match["kind"]:
            raise ValueError("it is of another kind")
        if version > FORMAT_VERSION:
            raise WsssError(
                f"Expected shard format {FORMAT_VERSION} or earlier in {path}, found {version}.",
                "Update wsssfast.",
            )
        for key, wanted in _FIELDS.items():
            if type(body[key]) is not wanted:
                raise ValueError(f"its {key} is a {type(body[key]).__name__}")
        texts = (*body["ids"], *body["failed"].values())
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("its ids or reasons are not text")
        body["ids"] = tuple(body["ids"])
        sidecar = Sidecar(**body)
        if path.name != f"{sidecar.stem}.json":
            raise ValueError("it was renamed")
        return sidecar
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WsssError(
            f"Expected the sidecar of a shard at {path}, found a damaged file: {error}.",
            "Delete it and run the export again: only this shard is redone.",
        ) from error


def damage_of(folder: Path, sidecar: Sidecar) -> str:
    """What is wrong with a shard's file by its size and checksum; empty where nothing is."""
    path = folder / f"{sidecar.stem}.h5"
    try:
        if path.stat().st_size != sidecar.file_bytes:
            return f"{path.stat().st_size} bytes, expected {sidecar.file_bytes}"
        if sha256_of(path) != sidecar.file_sha256:
            return "its contents were changed: the checksum does not fit"
    except OSError as error:
        return str(error.strerror)
    return ""


def sidecars(folder: Path, kind: str) -> Iterator[Sidecar]:
    """All sidecars of a kind in a folder, in shard order."""
    for path in sorted(folder.glob(f"{kind}-*-of-*.json")):
        if _NAME.fullmatch(path.name):
            yield read_sidecar(path)


def remove_shards(folder: Path, kind: str) -> None:
    """Remove all shards of a kind, and nothing whose name is only like theirs."""
    for path in folder.glob(f"{kind}-*-of-*"):
        if _NAME.fullmatch(path.name):
            path.unlink()


def kinds_in(folder: Path) -> list[str]:
    """The kinds of which a folder holds sidecars, whole or damaged."""
    return [kind for kind in KINDS if any(folder.glob(f"{kind}-*-of-*.json"))]


def kind_of(folder: Path) -> str:
    """Of `KINDS`, the one kind of shards that a folder holds.

    Raises:
        WsssError: no such folder, no shards in it, or shards of several kinds.
    """
    if not folder.is_dir():
        raise WsssError(f"Expected a folder of shards at {folder}, found none.")
    found = kinds_in(folder)
    if len(found) != 1:
        names = " and ".join(KINDS[kind][0] for kind in found)
        raise WsssError(f"Expected shards of one kind in {folder}, found {names or 'none'}.")
    return found[0]


def stored_bytes(folder: Path, kind: str) -> int:
    """Size of all shards of a kind and their sidecars."""
    total = 0
    for path in folder.glob(f"{kind}-*-of-*"):
        with suppress(FileNotFoundError):  # another worker is redoing this shard
            total += path.stat().st_size
    return total


def require_same_identity(found: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    """Refuse to mix two configurations in one folder, naming the keys that differ.

    Raises:
        WsssError: they differ.
    """
    differ = list(_differences(found, wanted))
    if differ:
        raise WsssError(
            f"Expected results of this configuration in {folder}, found others: {listing(differ)}.",
            "Choose another --out, or discard them with --overwrite.",
        )


def _differences(found: dict[str, Any], wanted: dict[str, Any], within: str = "") -> Iterator[str]:
    """Each key whose values differ, with both."""
    for key in sorted(found.keys() | wanted.keys()):
        there, now = found.get(key), wanted.get(key)
        if there != now and isinstance(there, dict) and isinstance(now, dict):
            yield from _differences(there, now, f"{within}{key}.")
        elif there != now and key == "dataset":
            yield f"{within}{key} (other images, image labels or classes)"
        elif there != now:
            yield f"{within}{key} (there {_short(there)}, now {_short(now)})"


def _short(value: Any) -> str:
    text = canonical(value)
    return text if len(text) <= 28 else text[:20] + "…"
