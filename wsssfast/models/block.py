"""A block of timm's ViT whose attention is wanted.

As the export walks it, without gradients and attention captured on the way; as WeakTr trains it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from wsssfast import kernels


def captured_block(
    block: Any, x: Tensor, layer: int, attention: kernels.AttentionCapture
) -> Tensor:
    """Timm's Block.forward in evaluation mode; its result may lie where `x` lay.

    Args:
        block: of timm's VisionTransformer.
        x: [B, T, D] tokens.
        layer: of the block, counted from 0.
        attention: takes the attention of the layers that it wants.
    """
    if not attention.wants(layer):
        plain: Tensor = block(x)
        return plain
    attn = block.attn
    query, key, value = _projections(attn, block.norm1(x), layer, attention)
    attended = attention.attend(layer, attn.q_norm(query), attn.k_norm(key), value, attn.scale)
    attended = attended.transpose(1, 2).flatten(2)
    norm = getattr(attn, "norm", None)
    if norm is not None:
        attended = norm(attended)
    x = x.add_(block.ls1(attn.proj(attended)))
    return x.add_(block.ls2(_perceptron(block.mlp, block.norm2(x))))


def attending_block(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Timm's Block.forward in training, and its attention [B, M, T, T].

    Args:
        block: of timm's VisionTransformer.
        x: [B, T, D] tokens.
    """
    attn = block.attn
    batch, tokens, _ = x.shape
    qkv = attn.qkv(block.norm1(x)).reshape(batch, tokens, 3, attn.num_heads, -1)
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    scores = attn.q_norm(query) @ attn.k_norm(key).transpose(-2, -1) * attn.scale
    probabilities = torch.softmax(scores, -1)
    attended = (probabilities @ value).transpose(1, 2).flatten(2)
    norm = getattr(attn, "norm", None)
    if norm is not None:
        attended = norm(attended)
    x = x + block.drop_path1(block.ls1(attn.proj(attended)))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))), probabilities


def _projections(
    attn: Any, x: Tensor, layer: int, attention: kernels.AttentionCapture
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value [B, M, T, d]; values apart where queries and keys are to be kept."""
    batch, tokens, width = x.shape
    weight, bias, both = attn.qkv.weight, attn.qkv.bias, 2 * width
    first, last = (None, None) if bias is None else (bias[:both], bias[both:])
    kept = attention.project(layer, x, weight[:both], first, attn.num_heads)
    if kept is None:
        qkv = attn.qkv(x).reshape(batch, tokens, 3, attn.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value
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
