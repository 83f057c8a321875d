"""Folders to write into, and files that appear complete or not at all."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from wsssfast.errors import WsssError


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


def publish(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name, sync it, rename it, sync the folder.

    Holds also after a power cut.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sha256_of(path: Path) -> str:
    """Checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
