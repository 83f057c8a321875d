"""Plain ViTs of timm: which ones serve as backbone, and their ImageNet weights."""

import difflib
import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from huggingface_hub import constants as hub
from huggingface_hub.utils import get_session
from timm.layers import Attention, PatchEmbed
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

from wsssfast.errors import WsssError
from wsssfast.models.sealed import require_finite

Channels = tuple[float, float, float]
_SUCH = "Such as deit_tiny_patch16_224 or deit_small_patch16_224."
_PATIENCE = 10.0  # seconds for the hub to answer
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# option -> type, least, most: what changes the structure of a plain ViT, and nothing else
_OPTIONS: dict[str, tuple[Any, float, float]] = {
    "patch_size": (int, 1, 64),
    "embed_dim": (int, 1, 8192),
    "depth": (int, 1, 128),
    "num_heads": (int, 1, 128),
    "mlp_ratio": ((int, float), 0.01, 16),
    "qkv_bias": (bool, 0, 1),
    "qk_norm": (bool, 0, 1),
    "init_values": ((int, float), 0, 1),
    "drop_path_rate": ((int, float), 0, 1),
}


def build_backbone(arch: str, options: dict[str, Any], image_size: int) -> VisionTransformer | Eva:
    """A timm ViT without weights, refused in one line where it is not plain.

    Plain means: one class token at most besides patches and registers (it is replaced), positions
    that are learned, rotary, or both, pre-norm blocks with softmax attention over all tokens.

    Args:
        arch: timm's model name, such as deit_small_patch16_224.
        options: keyword arguments of that model, such as embed_dim or drop_path_rate.
        image_size: side in pixels that the position embedding is made for.

    Raises:
        WsssError: unknown to timm, or not plain.
    """
    _require_options(arch, options)
    # rotary positions of a fixed size would be those of the training size at every other one
    sizes: dict[str, Any] = {"dynamic_img_size": True} if _is_eva(arch) else {}
    try:
        vit: Any = timm.create_model(
            arch, pretrained=False, num_classes=0, img_size=image_size, **sizes, **options
        )
    except Exception as error:  # options that do not fit one another fail anywhere in timm
        told = "a network of another kind"
        if not isinstance(error, TypeError):
            told = f"which timm does not build at {image_size} pixels with these options"
        raise WsssError(f"Expected a plain ViT of timm, found {arch!r}, {told}.", _SUCH) from error
    reason = why_not_plain(vit)
    if reason:
        raise WsssError(f"Expected a plain ViT of timm, found {arch!r}, which has {reason}.", _SUCH)
    assert isinstance(vit, VisionTransformer | Eva)
    return vit


def _is_eva(arch: str) -> bool:
    return arch in timm.list_models(module="eva")


def _require_options(arch: str, options: dict[str, Any]) -> None:
    """Refuse all but names that timm itself builds and options that are structure.

    They can come from a checkpoint, and timm's other options read files and addresses.
    """
    if not timm.is_model(arch) or not re.fullmatch(r"[a-z0-9_]+", arch):
        raise WsssError(
            f"Expected the name of a timm model, found {arch[:80]!r}: Unknown model.",
            _closest(arch[:80]),
        )
    for name, value in options.items():
        allowed = _OPTIONS.get(name)
        kind = (
            allowed
            and isinstance(value, allowed[0])
            and isinstance(value, bool) is (allowed[0] is bool)
        )
        if not allowed or not kind or not allowed[1] <= value <= allowed[2]:
            raise WsssError(
                f"Expected backbone options out of {', '.join(_OPTIONS)} within their ranges, "
                f"found {name[:40]!r} of {str(value)[:40]}."
            )


def _closest(arch: str) -> str:
    """What to do about a name that timm does not have."""
    known = timm.list_models(module=["deit", "eva", "vision_transformer"])
    close = difflib.get_close_matches(arch, known)
    return f"Close to it are {', '.join(close)}." if close else _SUCH


def why_not_plain(vit: Any) -> str:
    """What keeps a timm model from serving as backbone; empty where nothing does."""
    if type(vit) not in (VisionTransformer, Eva):
        return f"the type {type(vit).__name__}"
    if vit.reg_token is not None and vit.pos_embed is not None and not vit.no_embed_class:
        return "positions of its registers"
    if vit.num_prefix_tokens > 1 and vit.reg_token is None:
        return "more than one class token"
    rotary = getattr(vit, "rope", None) is not None
    if getattr(vit, "rope_mixed", False):
        return "rotary positions that differ from layer to layer"
    if vit.pos_embed is None and not rotary:
        return "no position embedding"
    if type(vit.patch_embed) is not PatchEmbed:
        return f"the patch embedding {type(vit.patch_embed).__name__}"
    return why_not_captured(vit)


def why_not_captured(vit: Any) -> str:
    """What keeps the attention of a network's blocks from capture; empty where nothing does."""
    for block in vit.blocks:
        if type(block) not in (Block, EvaBlock):
            return f"blocks of the type {type(block).__name__}"
        if type(block.attn) not in (Attention, EvaAttention):
            return f"attention of the type {type(block.attn).__name__}"
        if block.attn.qkv is None:
            return "queries, keys and values projected apart"
        if getattr(block.attn, "gate", None) is not None:
            return "gated attention"
        if block.attn.qkv.out_features != 3 * block.attn.qkv.in_features:
            return "heads that are together wider or narrower than tokens"
    return ""


def plain_vits() -> list[str]:
    """Names of all timm models that can be the backbone (built without memory; takes a minute)."""
    names = []
    for arch in timm.list_models(module=["vision_transformer", "eva"]):
        with torch.device("meta"):
            if not why_not_plain(timm.create_model(arch, num_classes=0)):
                names.append(arch)
    return names


def backbone_weights(arch: str, source: str) -> dict[str, Tensor]:
    """ImageNet weights under timm's key names.

    Args:
        arch: timm's model name, also with the tag of the weights.
        source: a local file (a state dict, bare or under `model` or `state_dict`), or "timm" to
            let timm download them.

    Raises:
        WsssError: no file, not weights, or no download.
    """
    from wsssfast.models.checkpoint import read_state_dict

    if source != "timm":
        found = read_state_dict(Path(source))
        require_finite(found, source)
        return found
    online = _hub_answers()
    try:
        with _hub_quiet(online):
            vit = timm.create_model(arch, pretrained=True, num_classes=0)
    except Exception as error:  # whatever the hub's client raises on the way
        reason = type(error).__name__
        if not online and isinstance(error, OSError):  # they are not in the cache
            reason = "HF_HUB_OFFLINE is set" if hub.HF_HUB_OFFLINE else "no network"
        raise WsssError(
            f"Expected timm to provide ImageNet weights of {arch}: {reason}.",
            "Give a local file by --pretrained FILE.",
        ) from error
    state: dict[str, Tensor] = vit.state_dict()
    return state


def _hub_answers() -> bool:
    """Whether the hub that timm downloads from can be reached, asked once by its own client.

    Left alone, timm asks again for two minutes before it gives up.
    """
    try:
        get_session().head(hub.ENDPOINT, timeout=_PATIENCE)
    except Exception:  # its clients, from version to version, differ in what they raise
        return False
    return True


@contextmanager
def _hub_quiet(online: bool) -> Iterator[None]:
    """The hub's client without its warnings; where it is not online, with its cache alone."""
    logs = [logging.getLogger(name) for name in ("timm", "huggingface_hub")]
    before = hub.HF_HUB_OFFLINE, [log.level for log in logs]
    try:
        hub.HF_HUB_OFFLINE = not online
        for log in logs:
            log.setLevel(logging.ERROR)
        yield
    finally:
        hub.HF_HUB_OFFLINE = before[0]
        for log, level in zip(logs, before[1], strict=True):
            log.setLevel(level)


def resize_positions(patch_part: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bicubic resize of a square patch position embedding at initialisation.

    Args:
        patch_part: [1, N0, D], N0 a square.
        grid: wanted (h, w).

    Returns:
        [1, h*w, D].
    """
    side = math.isqrt(patch_part.shape[1])
    if (side, side) == grid:
        return patch_part
    image = patch_part.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=grid, mode="bicubic", align_corners=False)
    return image.flatten(2).transpose(1, 2)


def preprocessing(arch: str) -> tuple[Channels, Channels]:
    """Mean and std of RGB in [0, 1] that the backbone's own weights expect, from timm."""
    try:
        found = timm.get_pretrained_cfg(arch)
    except RuntimeError as error:  # a tag that it does not have
        raise WsssError(f"Expected the name of a timm model: {error}.") from error
    mean, std = (found.mean, found.std) if found else (_IMAGENET_MEAN, _IMAGENET_STD)
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])
