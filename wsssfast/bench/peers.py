"""What PyTorch users have today: the same network and the same maps, in plain functions.

Each forward takes our classifier and normalised images, walks its blocks in the same way, and
differs in the attention alone. They keep what `ClassTokenViT.capture` keeps, equal to rounding.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wsssfast.kernels import reference
from wsssfast.models.classifier import ClassTokenViT

Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]


class Maps(NamedTuple):
    """What a forward leaves for the refinement.

    Attributes:
        cam: [B, C, h, w] Original-CAM.
        c2p: [B, C, N] class-to-patch attention.
        p2p: [B, N, N] patch-to-patch attention.
    """

    cam: Tensor
    c2p: Tensor
    p2p: Tensor


@torch.no_grad()
def plain_forward(model: ClassTokenViT, images: Tensor) -> Tensor:
    """The floor: scaled dot-product attention only, which returns no attention.

    Args:
        model: in evaluation mode.
        images: [B, 3, H, W], normalised.

    Returns:
        [B, C, h, w] Original-CAM.
    """

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, scale=scale)

    return _cam(model, images, attend)


@torch.no_grad()
def stacked_forward(
    model: ClassTokenViT, images: Tensor, c2p_layers: int = 3, p2p_layers: int = 12
) -> Maps:
    """MCTformer's public code: keeps [L, B, M, T, T], then averages over heads and layers.

    Args:
        model: in evaluation mode.
        images: [B, 3, H, W], normalised.
        c2p_layers: last layers that the class-to-patch attention averages.
        p2p_layers: last layers that the patch-to-patch attention averages.
    """
    kept: list[Tensor] = []

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        output, attention = attend_by_softmax(query, key, value, scale)
        kept.append(attention)
        return output

    cam = _cam(model, images, attend)
    return Maps(cam, *stacked_means(kept, model.num_classes, c2p_layers, p2p_layers))


@torch.no_grad()
def recompute_forward(
    model: ClassTokenViT, images: Tensor, c2p_layers: int = 3, p2p_layers: int = 12
) -> Maps:
    """The strong peer: SDPA, and each layer's attention once more for running sums, then dropped.

    Args:
        model: in evaluation mode.
        images: [B, 3, H, W], normalised.
        c2p_layers: last layers that the class-to-patch attention averages.
        p2p_layers: last layers that the patch-to-patch attention averages.
    """
    sums = RunningMeans(model.num_classes, len(model.blocks), c2p_layers, p2p_layers)

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        sums.add(query, key, scale)
        return F.scaled_dot_product_attention(query, key, value, scale=scale)

    cam = _cam(model, images, attend)
    return Maps(cam, *sums.means())


def attend_by_softmax(
    query: Tensor, key: Tensor, value: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention output [B, M, T, d] and the attention [B, M, T, T], which is float32 at least.

    Softmax gives float32 under autocast too.
    """
    attention = _softmax(query, key, scale)
    return attention.to(value.dtype) @ value, attention


def stacked_means(
    kept: Sequence[Tensor], classes: int, c2p_layers: int, p2p_layers: int
) -> tuple[Tensor, Tensor]:
    """c2p [B, C, N] and p2p [B, N, N] of attention [B, M, T, T] by layer, by stacking it."""
    by_layer = torch.stack(list(kept)).mean(2)  # [L, B, T, T]
    c2p = by_layer[-c2p_layers:].mean(0)[:, :classes, classes:]
    return c2p, by_layer[-p2p_layers:].mean(0)[:, classes:, classes:]


class RunningMeans:
    """Sums of head means over layers; the attention of one layer exists at a time."""

    def __init__(self, classes: int, depth: int, c2p_layers: int, p2p_layers: int) -> None:
        self.classes, self.left = classes, depth
        self.c2p_layers, self.p2p_layers = min(c2p_layers, depth), min(p2p_layers, depth)
        self.c2p: Tensor | None = None
        self.p2p: Tensor | None = None

    def add(self, query: Tensor, key: Tensor, scale: float) -> None:
        """Add a layer, first to last."""
        left, self.left = self.left, self.left - 1
        if left > max(self.c2p_layers, self.p2p_layers):
            return
        mean = _softmax(query, key, scale).mean(1)
        if left <= self.c2p_layers:
            part = mean[:, : self.classes, self.classes :]
            self.c2p = part.clone() if self.c2p is None else self.c2p.add_(part)
        if left <= self.p2p_layers:
            part = mean[:, self.classes :, self.classes :]
            self.p2p = part.clone() if self.p2p is None else self.p2p.add_(part)

    def means(self) -> tuple[Tensor, Tensor]:
        """c2p [B, C, N] and p2p [B, N, N]."""
        assert self.c2p is not None and self.p2p is not None
        return self.c2p.div_(self.c2p_layers), self.p2p.div_(self.p2p_layers)


def topk_gather_mean(c2p: Tensor, similarity: Tensor, count: int) -> Tensor:
    """R of Eq. 3 by an index list: top-k, gather, mean.

    Args:
        c2p: [B, C, N].
        similarity: [B, N, N].
        count: k.

    Returns:
        [B, C, N].
    """
    index = torch.topk(similarity, count, dim=-1, sorted=False).indices  # [B, N, k]
    batch, classes, patches = c2p.shape
    index = index[:, None].expand(-1, classes, -1, -1)
    rows = c2p[:, :, None].expand(batch, classes, patches, patches)
    return rows.gather(-1, index).mean(-1)


def refine_by_topk(cam: Tensor, c2p: Tensor, p2p: Tensor, ratio: float, alpha: float) -> Tensor:
    """The final CAM, gather propagation, with `topk_gather_mean`.

    Args:
        cam: [B, C, N].
        c2p: [B, C, N].
        p2p: [B, N, N].
        ratio: share of related patches.
        alpha: weight of the related mean.

    Returns:
        [B, C, N].
    """
    related = topk_gather_mean(c2p, p2p, reference.related_count(ratio, p2p.shape[-1]))
    return (torch.relu(cam) * (c2p + alpha * related)) @ p2p.transpose(-2, -1)


def refine_by_reference(
    cam: Tensor, c2p: Tensor, p2p: Tensor, ratio: float, alpha: float
) -> Tensor:
    """The final CAM, equation by equation; arguments as `refine_by_topk`."""
    return reference.stage_maps(cam, c2p, p2p, ("final",), ratio=ratio, alpha=alpha)["final"]


def _softmax(query: Tensor, key: Tensor, scale: float) -> Tensor:
    scores = query @ key.transpose(-2, -1) * scale
    return torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32))


def _cam(model: ClassTokenViT, images: Tensor, attend: Attend) -> Tensor:
    """Walk the network with attention of one's own, [B, C, h, w] in float32 at least."""
    patches = model.patch_embed.norm(model.patch_embed.proj(images).flatten(2).transpose(1, 2))
    classes = model.cls_token.expand(images.shape[0], -1, -1)
    positions = model.positions(images.shape[2], images.shape[3])
    assert positions is not None  # shapes.py refuses networks without
    x = model.norm_pre(torch.cat([classes, patches], dim=1) + positions)
    blocks: Any = model.blocks
    for block in blocks:
        x = x + block.ls1(_attention(block.attn, block.norm1(x), attend))
        x = x + block.ls2(block.mlp(block.norm2(x)))
    grid = model.patch_grid(images)
    tokens = x[:, model.num_classes :].transpose(1, 2).reshape(len(x), -1, *grid)
    assert model.head is not None
    cam: Tensor = model.head(tokens)
    return cam.to(torch.promote_types(cam.dtype, torch.float32))


def _attention(attn: Any, x: Tensor, attend: Attend) -> Tensor:
    """Timm's Attention.forward with another way to attend."""
    batch, tokens, _ = x.shape
    qkv = attn.qkv(x).reshape(batch, tokens, 3, attn.num_heads, -1)
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    output = attend(attn.q_norm(query), attn.k_norm(key), value, attn.scale)
    output = output.transpose(1, 2).flatten(2)
    norm = getattr(attn, "norm", None)
    if norm is not None:
        output = norm(output)
    projected: Tensor = attn.proj(output)
    return projected
