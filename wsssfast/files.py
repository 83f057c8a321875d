"""Folders to write into, and files that appear complete or not at all."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from secrets import token_hex

from wsssfast.errors import WsssError

_MEND = "Mend it and run the same command again."


def output_folder(out: Path, what: str) -> None:
    """Make a folder for results where there is none.

    Args:
        out: the folder.
        what: what it is for, as the error says it: "the shards".

    Raises:
        WsssError: a file is there, or it cannot be made.
    """
    if out.exists() and not out.is_dir():
        raise WsssError(f"Expected a folder for {what}, found a file at {out}.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WsssError(f"Expected to make the folder {out}: {error.strerror}.") from error


def require_empty(out: Path, besides: str = "") -> None:
    """Refuse a folder that holds anything, as --no-resume asks.

    Args:
        out: the folder.
        besides: name of a file that may be there.

    Raises:
        WsssError: it holds files.
    """
    if any(path.name != besides for path in out.iterdir()):
        raise WsssError(
            f"Expected an empty or new folder with --no-resume, found files in {out}.",
            "Leave the flag out to continue there, or discard with --overwrite.",
        )


def publish(path: Path, write: Callable[[Path], object], *, sync: bool = True) -> None:
    """Write a file under a temporary name of this process's own, and rename it.

    Args:
        path: of the file; one that is there is replaced.
        write: writes the file to the path that it is given.
        sync: sync the file before and the folder after, so that it holds also after a power cut.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}-{token_hex(4)}.partial")
    try:
        write(unfinished)
        if sync:
            _sync(unfinished, os.O_RDWR)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    if sync:
        _sync(path.parent, os.O_RDONLY)


@contextmanager
def telling_no_room(place: Path | str, remedy: str = _MEND) -> Iterator[None]:
    """Turn what the system says of a full disk or a missing right into one clear error.

    Args:
        place: what is written, as the error says it.
        remedy: what to do about it.

    Raises:
        WsssError: whatever inside could not be written.
    """
    try:
        yield
    except OSError as error:
        raise WsssError(
            f"Expected room and the right to write {place}: {error.strerror or error}.",
            remedy,
        ) from error


def write_each(
    out: Path,
    names: Iterable[str],
    suffix: str,
    content: Callable[[str], bytes],
    progress: Callable[[int], None],
) -> int:
    """Write one file a name into a folder, each whole or not at all, and not synced.

    Args:
        out: the folder; made where absent.
        names: of the files, without suffix; files that are there are replaced.
        suffix: of the files.
        content: name -> what its file is to hold.
        progress: called with 1 a file.

    Returns:
        How many there are.

    Raises:
        WsssError: `out` is no folder, or cannot be written to.
    """
    output_folder(out, "the files")
    count = 0
    for name in names:
        data = content(name)
        with telling_no_room(out):
            publish(out / f"{name}{suffix}", partial(Path.write_bytes, data=data), sync=False)
        count += 1
        progress(1)
    return count


def sha256_of(path: Path) -> str:
    """Checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
