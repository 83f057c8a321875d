"""Versions of what bears on the numbers, for the record of a run."""

import platform
from importlib.metadata import version

import torch


def versions(*packages: str) -> dict[str, str]:
    """Package -> version, of wsssfast, timm, pillow, torch, Python and the packages named."""
    return {
        **{name: version(name) for name in ("wsssfast", "timm", "pillow", *packages)},
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
