"""wsssfast: image labels to pixel labels (WSSS), fast, exact, at data-set scale."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsssfast import kernels
    from wsssfast.cam_options import CamOptions
    from wsssfast.errors import WsssError
    from wsssfast.hook import AttentionHook
    from wsssfast.models.checkpoint import load_model
    from wsssfast.notebook import cams, mask_of, overlay, stage_cams
    from wsssfast.shards import open_shards

__all__ = [
    "AttentionHook", "CamOptions", "WsssError", "cams", "kernels", "load_model", "mask_of",
    "open_shards", "overlay", "stage_cams",
]  # fmt: skip

_HOMES = {
    "AttentionHook": "wsssfast.hook",
    "CamOptions": "wsssfast.cam_options",
    "WsssError": "wsssfast.errors",
    "cams": "wsssfast.notebook",
    "load_model": "wsssfast.models.checkpoint",
    "mask_of": "wsssfast.notebook",
    "open_shards": "wsssfast.shards",
    "overlay": "wsssfast.notebook",
    "stage_cams": "wsssfast.notebook",
}


def __getattr__(name: str) -> Any:
    """Import the public names on first use: `import wsssfast` alone loads no torch."""
    if name == "kernels":
        return import_module("wsssfast.kernels")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
