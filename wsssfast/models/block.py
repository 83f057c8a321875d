"""A block of timm's ViT whose attention is wanted.

As the export walks it, without gradients and attention captured on the way; as WeakTr trains it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Mlp, apply_rot_embed_cat
from torch import Tensor, nn

from wsssfast import kernels

_MOST_MAPS = 2**25  # elements of one layer's attention


def captured_block(
    block: Any,
    x: Tensor,
    layer: int,
    attention: kernels.AttentionCapture,
    rope: Tensor | None = None,
) -> Tensor:
    """Timm's forward of a block in evaluation mode; its result may lie where `x` lay.

    Args:
        block: of timm's VisionTransformer or Eva.
        x: [B, T, D] tokens.
        layer: of the block, counted from 0.
        attention: takes the attention of the layers that it wants.
        rope: [N, 2 d] rotary positions of the patches; None where there are none.
    """
    if not attention.wants(layer):
        return plain_block(block, x, rope)
    attended = captured_attention(block.attn, block.norm1(x), layer, attention, rope)
    x = x.add_(_scaled(block, 1, attended))
    return x.add_(_scaled(block, 2, _perceptron(block.mlp, block.norm2(x))))


def captured_attention(
    attn: Any,
    x: Tensor,
    layer: int,
    attention: kernels.AttentionCapture,
    rope: Tensor | None = None,
) -> Tensor:
    """The attention of a block in evaluation mode, [B, T, D] to [B, T, D].

    Args:
        attn: timm's Attention or EvaAttention.
        x: normed tokens.
        layer: of the block, counted from 0, one that `attention` wants.
        attention: takes it.
        rope: as for `captured_block`.
    """
    query, key, value = _projections(attn, x, layer, attention)
    query, key = attn.q_norm(query), attn.k_norm(key)
    if rope is not None:  # in place: where queries and keys are kept, they are kept turned
        for tokens in (query, key):
            patches = tokens[:, :, attn.num_prefix_tokens :]
            patches.copy_(_turned(attn, patches, rope))
    return _output(attn, attention.attend(layer, query, key, value, attn.scale))


def plain_block(block: Any, x: Tensor, rope: Tensor | None) -> Tensor:
    """A block as it is: tokens [B, T, D], rotary positions as for `captured_block`."""
    if _whole_maps_pay(block.attn.num_heads, x):
        return attending_block(block, x, rope)[0]
    result: Tensor = block(x) if rope is None else block(x, rope=rope)
    return result


def _whole_maps_pay(heads: int, x: Tensor) -> bool:
    """Whether attention is quicker trained through whole maps than through PyTorch's fused kernel.

    The backward of the CPU's is slow in half precision: it takes three times as long at 164 tokens,
    and no less at 1,044. `_MOST_MAPS` bounds the memory: three such maps are kept a layer.
    """
    batch, tokens, _ = x.shape
    return (
        x.requires_grad
        and x.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and batch * heads * tokens * tokens <= _MOST_MAPS
    )


def attending_block(block: Any, x: Tensor, rope: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Timm's forward of a block in training, and its attention [B, M, T, T].

    Args:
        block: of timm's VisionTransformer or Eva.
        x: [B, T, D] tokens.
        rope: [N, 2 d] rotary positions of the patches; None where there are none.
    """
    attn = block.attn
    query, key, value = _heads(attn, F.linear(block.norm1(x), attn.qkv.weight, _bias(attn)))
    query, key = attn.q_norm(query), attn.k_norm(key)
    if rope is not None:
        prefix = attn.num_prefix_tokens
        query, key = (
            torch.cat([part[:, :, :prefix], _turned(attn, part[:, :, prefix:], rope)], 2)
            for part in (query, key)
        )
    probabilities = torch.softmax((query * attn.scale) @ key.transpose(-2, -1), -1)
    x = x + block.drop_path1(_scaled(block, 1, _output(attn, probabilities @ value)))
    return x + block.drop_path2(_scaled(block, 2, block.mlp(block.norm2(x)))), probabilities


def _turned(attn: Any, patches: Tensor, rope: Tensor) -> Tensor:
    """Queries or keys [B, M, N, d] of patches, turned by their positions."""
    turned: Tensor = apply_rot_embed_cat(patches, rope, half=attn.rotate_half)
    return turned.to(patches.dtype)


def _scaled(block: Any, branch: int, x: Tensor) -> Tensor:
    """A branch's result by its layer scale, which VisionTransformer and Eva name differently."""
    scale = getattr(block, f"ls{branch}", None)
    if scale is not None:
        scaled: Tensor = scale(x)
        return scaled
    factor = getattr(block, f"gamma_{branch}")
    return x if factor is None else factor * x


def _output(attn: Any, attended: Tensor) -> Tensor:
    """[B, T, D] out of the heads' [B, M, T, d]."""
    attended = attended.transpose(1, 2).flatten(2)
    norm = getattr(attn, "norm", None)
    projected: Tensor = attn.proj(attended if norm is None else norm(attended))
    return projected


def _bias(attn: Any) -> Tensor | None:
    """Of queries, keys and values [3 * D]; Eva's keys have none, which it writes as zeros."""
    if attn.qkv.bias is not None or getattr(attn, "q_bias", None) is None:
        own: Tensor | None = attn.qkv.bias
        return own
    return torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])


def _heads(attn: Any, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value [B, M, T, d]."""
    batch, tokens, _ = qkv.shape
    parts = qkv.reshape(batch, tokens, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = parts.unbind(0)
    return query, key, value


def _projections(
    attn: Any, x: Tensor, layer: int, attention: kernels.AttentionCapture
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value [B, M, T, d]; values apart where queries and keys are to be kept."""
    batch, tokens, width = x.shape
    weight, bias, both = attn.qkv.weight, _bias(attn), 2 * width
    first, last = (None, None) if bias is None else (bias[:both], bias[both:])
    kept = attention.project(layer, x, weight[:both], first, attn.num_heads)
    if kept is None:
        return _heads(attn, F.linear(x, weight, bias))
    value = F.linear(x, weight[both:], last).reshape(batch, tokens, attn.num_heads, -1)
    return *kept, value.transpose(1, 2)


def _perceptron(mlp: Any, x: Tensor) -> Tensor:
    """The two linear layers; GELU in place, which spares the largest tensor of a block a twin."""
    if type(mlp) is not Mlp or type(mlp.act) is not nn.GELU:
        other: Tensor = mlp(x)
        return other
    hidden = torch.ops.aten.gelu_(mlp.fc1(x), approximate=mlp.act.approximate)
    result: Tensor = mlp.fc2(mlp.norm(hidden))
    return result
