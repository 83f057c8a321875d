"""The refinement in Triton: the functions of `eager` with their launches, for CUDA tensors.

In the interpreter (TRITON_INTERPRET=1) they take CPU tensors, which is how they are tested.
"""

import torch
from torch import Tensor

from wsssfast.kernels.modulation import modulate
from wsssfast.kernels.propagation import propagate as propagate_once
from wsssfast.kernels.selection import select


def related_patches(similarity: Tensor, count: int, include_self: bool = True) -> Tensor:
    """U(i) of Eq. 3 as bool [B, N, N], for those who want to see it."""
    patches = similarity.shape[-1]
    count = count if include_self else min(count, patches - 1)
    if count == 0:
        return torch.zeros_like(similarity, dtype=torch.bool)
    similarity = _rows(similarity)
    threshold, cut = select(similarity, count, include_self)
    bits = torch.where(similarity == 0, 0.0, similarity).view(torch.int32)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    column = torch.arange(patches, device=similarity.device)
    related = (bits > threshold[..., None]) | (
        (bits == threshold[..., None]) & (column < cut[..., None])
    )
    if not include_self:
        related.diagonal(dim1=-2, dim2=-1).fill_(False)
    return related


def related_mean(c2p: Tensor, similarity: Tensor, count: int, include_self: bool = True) -> Tensor:
    """R of Eq. 3, float32 [B, C, N]; two launches."""
    return _selected(None, c2p, similarity, count, 1.0, include_self)


def modulated_cam(
    cam: Tensor,
    c2p: Tensor,
    similarity: Tensor,
    count: int,
    alpha: float,
    include_self: bool = True,
) -> Tensor:
    """Eqs. 3-5: relu(cam) * (c2p + alpha * r), float32 [B, C, N]; two launches."""
    return _selected(cam, c2p, similarity, count, alpha, include_self)


def propagate(cam: Tensor, p2p: Tensor, propagation: str = "gather") -> Tensor:
    """Eq. 6, float32 [B, C, N]; one launch."""
    return propagate_once(_rows(cam), _rows(p2p), propagation)


def _selected(
    cam: Tensor | None, c2p: Tensor, similarity: Tensor, count: int, alpha: float, self_too: bool
) -> Tensor:
    c2p, cam = _rows(c2p), None if cam is None else _rows(cam)
    count = count if self_too else min(count, c2p.shape[-1] - 1)
    if count == 0:  # a single patch, which may not choose itself
        return torch.zeros_like(c2p) if cam is None else torch.relu(cam) * c2p
    similarity = _rows(similarity)
    threshold, cut = select(similarity, count, self_too)
    return modulate(cam, c2p, similarity, threshold, cut, count, alpha, self_too)


def _rows(tensor: Tensor) -> Tensor:
    """As float32 with contiguous rows; what is so already is not copied."""
    tensor = tensor.float()
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()
