"""Paths that options name: refused at once where they cannot serve, not after PyTorch's import."""

import os
from pathlib import Path
from typing import Any

import click

from wsssfast.errors import WsssError

FILE = click.Path(path_type=Path)
PLANNED = object()  # of a context: its command is not run yet, so what it reads may not be there


class Present(click.Path):
    """A path with something at it.

    Args:
        what: it should be, for the error, with `at` or `in`.
        remedy: where there is nothing.
    """

    def __init__(self, what: str, remedy: str = "Check the path.") -> None:
        super().__init__(path_type=Path)
        self._what, self._remedy = what, remedy

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:  # fmt: skip
        """The path, or WsssError where nothing is there."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        planned = ctx is not None and ctx.obj is PLANNED
        if not planned and not os.path.lexists(path):
            raise WsssError(f"Expected {self._what} {path}, found none.", self._remedy)
        return path


CHECKPOINT = Present("a checkpoint at")
CAMS = Present("CAM shards in", "Make them with `wsssfast export-cams`.")
LABELS = Present("label shards in", "Make them with `wsssfast export-labels`.")
SHARDS = Present("a folder of shards at")
ROOT = Present("a data folder at", "Check --data-root.")


def writable_file(ctx: click.Context, param: click.Parameter, path: str | None) -> str | None:
    """Refuse before a long run what could not be written after it."""
    if path not in (None, "-"):
        folder = Path(path).parent
        place = Path(path) if Path(path).exists() else folder
        if not folder.is_dir() or not os.access(place, os.W_OK) or Path(path).is_dir():
            raise WsssError(f"Expected to write {path}: {folder} is no writable folder for it.")
    return path


def _nearest(path: Path) -> Path:
    """The path, or the innermost folder above it that is there."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def writable_folder(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
    """Like `writable_file`, for a folder that is made."""
    if path is not None:
        there = _nearest(path)
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise WsssError(f"Expected to write into {path}: {there} is no writable folder.")
    return path


def writable_page(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
    """Like `writable_file`, for a page whose folder is made."""
    if path is not None:
        there = _nearest(path)
        fits = there.is_file() if there == path else there.is_dir()
        if path.is_dir():
            raise WsssError(f"Expected to write the file {path}, found a folder.")
        if not fits or not os.access(there, os.W_OK):
            raise WsssError(f"Expected to write {path}: {there} is no writable folder for it.")
    return path
