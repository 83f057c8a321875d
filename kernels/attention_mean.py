"""Head-and-layer mean of softmax attention from queries, keys and log-sum-exp, in Triton (Eq. 2).

    p2p[i, j] = 1/(L*M) * sum over layers and heads of exp(scale * q_i . k_j - lse_i)

and class rows the same over their own last layers, kept by layer. A program owns one tile of the
result, goes over layers and heads, and writes it once: attention itself never exists in memory.
Scores and exponentials are float32; queries and keys stay in the network's precision.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from wsssfast.kernels import launch
from wsssfast.kernels.backend import interpreted

LOG2E = 1.4426950408889634


@triton.jit
def _tile_sum(
    kept_ptr,
    lse_ptr,
    row,
    row_valid,
    column,
    column_valid,
    begin,  # first and last step: layer * heads + head
    end,
    heads,
    tokens,
    layer_stride,
    row_stride,
    lse_layer_stride,
    scale,  # times log2(e)
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sum over some steps of the attention of rows to columns, [ROWS, COLUMNS]."""
    channel = tl.arange(0, CHANNELS)
    query_place = row[:, None].to(tl.int64) * row_stride + channel[None, :]
    key_place = column[None, :].to(tl.int64) * row_stride + channel[:, None] + heads * WIDTH
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(begin, end):
        layer, head = (step // heads).to(tl.int64), step % heads
        start = kept_ptr + layer * layer_stride + head * WIDTH
        lse_start = lse_ptr + layer * lse_layer_stride + head * tokens
        lse = tl.load(lse_start + row, mask=row_valid, other=float("inf"))
        scores = tl.zeros((ROWS, COLUMNS), tl.float32)
        for first in tl.static_range(0, WIDTH, CHANNELS):  # wide heads in parts, or they spill
            query_valid, key_valid = row_valid[:, None], column_valid[None, :]
            if WIDTH % CHANNELS != 0:
                query_valid = query_valid & (first + channel < WIDTH)[None, :]
                key_valid = key_valid & (first + channel < WIDTH)[:, None]
            query = tl.load(start + first + query_place, mask=query_valid, other=0.0)
            key = tl.load(start + first + key_place, mask=key_valid, other=0.0)
            if PRECISION == "upcast":  # the interpreter cannot multiply bfloat16
                scores = tl.dot(query.to(tl.float32), key.to(tl.float32), scores)
            else:
                scores = tl.dot(query, key, scores, input_precision=PRECISION)
        total += tl.exp2(scores * scale - (lse * 1.4426950408889634)[:, None])
    return total


@triton.jit
def mean_kernel(
    kept_ptr,  # [L, B, T, 2, M, d], queries before keys
    lse_ptr,  # float32 [L, B, M, T]
    c2p_ptr,  # float32 [K, B, C, N]
    p2p_ptr,  # float32 [B, N, N]
    batch,
    heads,
    classes,
    patches,
    layers,
    c2p_layers,
    p2p_layers,
    layer_stride,
    batch_stride,
    row_stride,
    lse_layer_stride,
    c2p_row_stride,
    p2p_row_stride,
    scale,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """One tile of class rows by layer, or of patch rows over all layers."""
    tile = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    tokens = classes + patches
    kept_ptr += image * batch_stride
    lse_ptr += image * heads * tokens
    across = tl.cdiv(patches, COLUMNS)
    class_tiles = tl.cdiv(classes, CLASSES) * across
    if tile < class_tiles:
        label = tile // across * CLASSES + tl.arange(0, CLASSES)
        patch = tile % across * COLUMNS + tl.arange(0, COLUMNS)
        class_valid = (label < classes)[:, None] & (patch < patches)[None, :]
        class_place = label[:, None] * c2p_row_stride + patch[None, :]
        for layer in range(layers - c2p_layers, layers):
            kept = ((layer - layers + c2p_layers) * batch + image) * classes * c2p_row_stride
            attention = _tile_sum(
                kept_ptr, lse_ptr,
                label, label < classes, classes + patch, patch < patches,
                layer * heads, (layer + 1) * heads, heads, tokens,
                layer_stride, row_stride, lse_layer_stride, scale,
                WIDTH, CHANNELS, PRECISION, CLASSES, COLUMNS,
            )  # fmt: skip
            tl.store(c2p_ptr + kept + class_place, attention / heads, mask=class_valid)
    else:
        tile -= class_tiles
        row = tile // across * ROWS + tl.arange(0, ROWS)
        patch = tile % across * COLUMNS + tl.arange(0, COLUMNS)
        total = _tile_sum(
            kept_ptr, lse_ptr,
            classes + row, row < patches, classes + patch, patch < patches,
            (layers - p2p_layers) * heads, layers * heads, heads, tokens,
            layer_stride, row_stride, lse_layer_stride, scale,
            WIDTH, CHANNELS, PRECISION, ROWS, COLUMNS,
        )  # fmt: skip
        place = (image * patches + row[:, None]) * p2p_row_stride + patch[None, :]
        valid = (row < patches)[:, None] & (patch < patches)[None, :]
        tl.store(p2p_ptr + place, total / (p2p_layers * heads), mask=valid)


def precision(like: Tensor) -> str:
    """How products of such tensors are computed: float32 in three TF32 passes, as exact as it."""
    return "upcast" if interpreted() and like.dtype == torch.bfloat16 else "tf32x3"


def channels(width: int, element_size: int) -> int:
    """Channels of a head that are multiplied at once; more would not fit the registers."""
    return min(128 // element_size, max(16, int(triton.next_power_of_2(width))))


def attention_mean(
    kept: Tensor, lse: Tensor, classes: int, c2p_layers: int, p2p_layers: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Both means of all layers in one launch.

    Args:
        kept: [L, B, T, 2, M, d], contiguous: queries and keys of every token, T = C + N.
        lse: float32 [L, B, M, T], contiguous.
        classes: C, 0 or more.
        c2p_layers: last layers to keep of the class rows.
        p2p_layers: last layers that the patch rows average.
        scale: factor on the scores.

    Returns:
        float32 c2p by layer [c2p_layers, B, C, N], and p2p [B, N, N]. Their rows begin at
        multiples of 16 elements.
    """
    layers, batch, tokens, _, heads, width = kept.shape
    patches, device = tokens - classes, kept.device
    row = triton.cdiv(patches, 16) * 16
    c2p = torch.empty(c2p_layers, batch, classes, row, dtype=torch.float32, device=device)
    p2p = torch.empty(batch, patches, row, dtype=torch.float32, device=device)
    chosen = launch.settings("mean", kept, patches, width)
    across = triton.cdiv(patches, chosen["COLUMNS"])
    down = triton.cdiv(classes, chosen["CLASSES"]) + triton.cdiv(patches, chosen["ROWS"])
    with torch.cuda.device_of(kept):
        mean_kernel[(down * across, batch)](
            kept,
            lse,
            c2p,
            p2p,
            batch,
            heads,
            classes,
            patches,
            layers,
            c2p_layers,
            p2p_layers,
            *kept.stride()[:3],
            lse.stride(0),
            row,
            row,
            scale * LOG2E,
            WIDTH=width,
            CHANNELS=channels(width, kept.element_size()),
            PRECISION=precision(kept),
            **chosen,
        )
    return c2p[..., :patches], p2p[..., :patches]
