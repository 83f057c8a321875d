"""Launch settings: block sizes, warps and pipeline stages of each kernel on each architecture.

`launch.toml` is shipped. What `wsssfast bench --tune` found faster on this machine's GPU lies in a
JSON file of the same rows in the user's cache, and wins.
"""

import json
import os
import tomllib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsssfast.kernels.backend import interpreted

Row = dict[str, Any]
_LIMITS = ("arch", "bits", "up_to", "width")


def settings(kernel: str, like: Tensor, patches: int, width: int = 0) -> dict[str, int]:
    """Keyword arguments of a launch.

    Args:
        kernel: name of a table in `launch.toml`.
        like: an input of the kernel, on its device and in its precision.
        patches: N.
        width: of a head, where that matters.
    """
    if like.is_cuda:
        major, minor = torch.cuda.get_device_capability(like.device)
        arch, rows = 10 * major + minor, tuned(torch.cuda.get_device_name(like.device), kernel)
    else:
        arch, rows = 0, []
    bits = 8 * like.element_size()
    row = next(row for row in (*rows, *shipped()[kernel]) if fits(row, arch, bits, patches, width))
    found = {key: value for key, value in row.items() if key not in _LIMITS}
    return found if interpreted() else {**found, "enable_fp_fusion": True}


def tiles(
    kernel: str, like: Tensor, shape: tuple[int, int, int]
) -> tuple[tuple[int, int, int], dict[str, int]]:
    """Grid and settings of a kernel whose programs take some patches of some classes.

    Args:
        kernel: name of a table in `launch.toml`.
        like: an input of the kernel.
        shape: B, C, N.
    """
    batch, classes, patches = shape
    chosen = settings(kernel, like, patches)
    whole = max(16, 1 << (classes - 1).bit_length())
    chosen["CLASSES"] = min(chosen["CLASSES"], whole)
    rows, columns = chosen["ROWS"], chosen["CLASSES"]
    return (-(-patches // rows), -(-classes // columns), batch), chosen


def fits(row: Row, arch: int, bits: int, patches: int, width: int) -> bool:
    """Whether a row is meant for an architecture, a precision and a size."""
    return (
        arch in row.get("arch", (arch,))
        and bits == row.get("bits", bits)
        and patches <= row.get("up_to", patches)
        and width <= row.get("width", width)
        and (arch != 0 or "arch" in row)
    )


@cache
def shipped() -> dict[str, list[Row]]:
    """Every row of `launch.toml` by kernel."""
    text = files("wsssfast.kernels").joinpath("launch.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


@cache
def tuned(device: str, kernel: str) -> list[Row]:
    """Rows that were found on this machine for a GPU; none where the file cannot be used."""
    found = _known().get(device, {}).get(kernel)
    if not isinstance(found, list):
        return []
    names = shipped()[kernel][0].keys() - {*_LIMITS}
    usable = all(
        isinstance(row, dict)
        and row.keys() - {*_LIMITS} == names
        and all(type(value) is (list if key == "arch" else int) for key, value in row.items())
        for row in found
    )
    return found if usable else []


def remember(device: str, kernel: str, rows: list[Row]) -> None:
    """Keep the rows found for a kernel on a GPU; a file that cannot be used is made anew."""
    known = _known()
    known.setdefault(device, {})[kernel] = rows
    path = cache_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    tuned.cache_clear()


def _known() -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    whole = isinstance(found, dict) and all(isinstance(rows, dict) for rows in found.values())
    return found if whole else {}


def cache_file() -> Path:
    """Where tuning results lie: below XDG_CACHE_HOME, ~/.cache where unset."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "wsssfast" / "launch.json"
