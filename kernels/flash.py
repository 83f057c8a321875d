"""Attention output and log-sum-exp in Triton, for where PyTorch's own kernels give none.

Online softmax over blocks of keys, in base 2; the scores never leave the registers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from wsssfast.kernels import launch
from wsssfast.kernels.attention_mean import LOG2E, precision


@triton.jit
def flash_kernel(
    query_ptr,  # [B, M, T, d]
    key_ptr,
    value_ptr,
    output_ptr,  # [B, T, M, d]
    lse_ptr,  # float32 [B, M, T]
    heads,
    tokens,
    batch_stride,
    head_stride,
    row_stride,
    scale,  # times log2(e)
    WIDTH: tl.constexpr,
    WIDTH_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One block of rows of one head."""
    image = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDTH_BLOCK)
    inside = (row < tokens)[:, None] & (channel < WIDTH)[None, :]
    start = image * batch_stride + head * head_stride
    query_place = row[:, None].to(tl.int64) * row_stride + channel[None, :]
    query = tl.load(query_ptr + start + query_place, mask=inside, other=0.0)
    most = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    output = tl.zeros((ROWS, WIDTH_BLOCK), tl.float32)
    for first in range(0, tokens, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        valid = (column < tokens)[:, None] & (channel < WIDTH)[None, :]
        place = column[:, None].to(tl.int64) * row_stride + channel[None, :]
        key = tl.load(key_ptr + start + place, mask=valid, other=0.0)
        value = tl.load(value_ptr + start + place, mask=valid, other=0.0)
        if PRECISION == "upcast":  # the interpreter cannot multiply bfloat16
            scores = tl.dot(query.to(tl.float32), tl.trans(key.to(tl.float32)))
        else:
            scores = tl.dot(query, tl.trans(key), input_precision=PRECISION)
        scores = tl.where((column < tokens)[None, :], scores * scale, float("-inf"))
        larger = tl.maximum(most, tl.max(scores, 1))
        weights = tl.exp2(scores - larger[:, None])
        shrink = tl.exp2(most - larger)
        total = total * shrink + tl.sum(weights, 1)
        if PRECISION == "upcast":
            added = tl.dot(weights, value.to(tl.float32))
        else:
            added = tl.dot(weights.to(value.dtype), value, input_precision=PRECISION)
        output = output * shrink[:, None] + added
        most = larger
    result = (output / total[:, None]).to(output_ptr.dtype.element_ty)
    output_place = ((image * tokens + row[:, None]) * heads + head) * WIDTH + channel[None, :]
    tl.store(output_ptr + output_place, result, mask=inside)
    lse = (most + tl.log2(total)) * 0.6931471805599453
    tl.store(lse_ptr + (image * heads + head) * tokens + row, lse, mask=row < tokens)


def flash(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """What `sdpa.attend_with_lse` gives, for any head width up to `backend.MOST_WIDTH`.

    Args:
        query: [B, M, T, d].
        key: like `query`.
        value: like `query`.
        scale: factor on the scores.
    """
    query, key, value = (part.contiguous() for part in (query, key, value))
    batch, heads, tokens, width = query.shape
    output = query.new_empty(batch, tokens, heads, width)
    lse = query.new_empty(batch, heads, tokens, dtype=torch.float32)
    wide = max(16, triton.next_power_of_2(width))
    chosen = launch.settings("flash", query, tokens, width)
    with torch.cuda.device_of(query):
        flash_kernel[(triton.cdiv(tokens, chosen["ROWS"]), batch * heads)](
            query, key, value, output, lse, heads, tokens, *query.stride()[:3], scale * LOG2E,
            WIDTH=width, WIDTH_BLOCK=wide, PRECISION=precision(query),
            **chosen,
        )  # fmt: skip
    return output.transpose(1, 2), lse
