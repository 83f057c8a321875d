"""The hot operations as torch operators, so that torch.compile and dispatch see one node each.

On CPU they run `eager`, on CUDA the Triton kernels. The fake functions say shapes only.
"""

import torch
from torch import Tensor

from wsssfast.kernels import eager

_LIBRARY = torch.library.Library("wsssfast", "DEF")
_SCHEMAS = (
    "attend_and_add(Tensor query, Tensor key, Tensor value, float scale, int classes, float share,"
    " Tensor(a!)? total, Tensor(b!)? c2p, Tensor? weights=None) -> Tensor",
    "attend_with_lse(Tensor query, Tensor key, Tensor value, float scale) -> (Tensor, Tensor)",
    "attention_mean(Tensor kept, Tensor lse, int classes, int c2p_layers, int p2p_layers,"
    " float scale) -> (Tensor, Tensor)",
    "project_into(Tensor tokens, Tensor weight, Tensor? bias, Tensor(a!) out) -> ()",
    "related_mean(Tensor c2p, Tensor similarity, int count, bool include_self) -> Tensor",
    "modulated_cam(Tensor cam, Tensor c2p, Tensor similarity, int count, float alpha,"
    " bool include_self) -> Tensor",
    "propagate(Tensor cam, Tensor p2p, str propagation) -> Tensor",
)
for _schema in _SCHEMAS:
    _LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))

attend_and_add = torch.ops.wsssfast.attend_and_add
attend_with_lse = torch.ops.wsssfast.attend_with_lse
attention_mean = torch.ops.wsssfast.attention_mean
project_into = torch.ops.wsssfast.project_into
related_mean = torch.ops.wsssfast.related_mean
modulated_cam = torch.ops.wsssfast.modulated_cam
propagate = torch.ops.wsssfast.propagate

_LIBRARY.impl("attend_and_add", eager.attend_and_add, "CompositeExplicitAutograd")
_LIBRARY.impl("related_mean", eager.related_mean, "CPU")
_LIBRARY.impl("modulated_cam", eager.modulated_cam, "CPU")
_LIBRARY.impl("propagate", eager.propagate, "CPU")


@torch.library.impl(_LIBRARY, "attend_with_lse", "CompositeExplicitAutograd")
def _attend_with_lse(
    query: Tensor, key: Tensor, value: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    from wsssfast.kernels import sdpa

    return sdpa.attend_with_lse(query, key, value, scale)


@torch.library.impl(_LIBRARY, "project_into", "CompositeExplicitAutograd")
def _project_into(tokens: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    flat = tokens.reshape(-1, tokens.shape[-1]).to(out.dtype)
    wanted, transposed = out.view(len(flat), -1), weight.to(out.dtype).t()
    if bias is None:
        torch.mm(flat, transposed, out=wanted)
    else:
        torch.addmm(bias.to(out.dtype), flat, transposed, out=wanted)


@torch.library.impl(_LIBRARY, "attention_mean", "CompositeExplicitAutograd")
def _attention_mean(
    kept: Tensor, lse: Tensor, classes: int, c2p_layers: int, p2p_layers: int, scale: float
) -> tuple[Tensor, Tensor]:
    from wsssfast.kernels.attention_mean import attention_mean

    return attention_mean(kept, lse, classes, c2p_layers, p2p_layers, scale)


@torch.library.impl(_LIBRARY, "related_mean", "CUDA")
def _related_mean(c2p: Tensor, similarity: Tensor, count: int, include_self: bool) -> Tensor:
    from wsssfast.kernels import fused

    return fused.related_mean(c2p, similarity, count, include_self)


@torch.library.impl(_LIBRARY, "modulated_cam", "CUDA")
def _modulated_cam(
    cam: Tensor, c2p: Tensor, similarity: Tensor, count: int, alpha: float, include_self: bool
) -> Tensor:
    from wsssfast.kernels import fused

    return fused.modulated_cam(cam, c2p, similarity, count, alpha, include_self)


@torch.library.impl(_LIBRARY, "propagate", "CUDA")
def _propagate(cam: Tensor, p2p: Tensor, propagation: str) -> Tensor:
    from wsssfast.kernels import fused

    return fused.propagate(cam, p2p, propagation)


@torch.library.register_fake("wsssfast::attend_and_add", lib=_LIBRARY)
def _(query, key, value, scale, classes, share, total, c2p, weights=None):
    batch, heads, tokens, width = value.shape
    return value.new_empty(batch, tokens, heads, width).transpose(1, 2)


@torch.library.register_fake("wsssfast::attend_with_lse", lib=_LIBRARY)
def _(query, key, value, scale):
    batch, heads, tokens, width = value.shape
    output = value.new_empty(batch, tokens, heads, width).transpose(1, 2)
    return output, value.new_empty(batch, heads, tokens, dtype=torch.float32)


@torch.library.register_fake("wsssfast::project_into", lib=_LIBRARY)
def _(tokens, weight, bias, out):
    return None


@torch.library.register_fake("wsssfast::attention_mean", lib=_LIBRARY)
def _(kept, lse, classes, c2p_layers, p2p_layers, scale):
    batch, patches = kept.shape[1], kept.shape[2] - classes
    row = (patches + 15) // 16 * 16
    c2p = lse.new_empty(c2p_layers, batch, classes, row)
    p2p = lse.new_empty(batch, patches, row)
    return c2p[..., :patches], p2p[..., :patches]


@torch.library.register_fake("wsssfast::related_mean", lib=_LIBRARY)
def _(c2p, similarity, count, include_self):
    return torch.empty_like(c2p, memory_format=torch.contiguous_format)


@torch.library.register_fake("wsssfast::modulated_cam", lib=_LIBRARY)
def _(cam, c2p, similarity, count, alpha, include_self):
    return torch.empty_like(c2p, memory_format=torch.contiguous_format)


@torch.library.register_fake("wsssfast::propagate", lib=_LIBRARY)
def _(cam, p2p, propagation):
    return torch.empty_like(cam, memory_format=torch.contiguous_format)
