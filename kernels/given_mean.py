"""Head mean of attention that the caller has already, in Triton: one read, no copy."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def given_kernel(
    attention_ptr,  # [B, M, T, T] of any float
    c2p_ptr,  # float32 [B, C, N]
    p2p_ptr,  # float32 [B, N, N], added to
    heads,
    classes,
    tokens,
    batch_stride,
    head_stride,
    row_stride,
    c2p_row_stride,
    p2p_row_stride,
    layers,
    FIRST: tl.constexpr,  # whether this layer is the first to be added
    BLOCK: tl.constexpr,
):
    """One block of columns of one row."""
    row = tl.program_id(0)
    image = tl.program_id(2).to(tl.int64)
    patches = tokens - classes
    patch = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = patch < patches
    start = attention_ptr + image * batch_stride + row.to(tl.int64) * row_stride + classes
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(0, heads):
        total += tl.load(start + patch, mask=valid, other=0.0).to(tl.float32)
        start += head_stride
    mean = total / heads
    if row < classes:
        tl.store(c2p_ptr + (image * classes + row) * c2p_row_stride + patch, mean, mask=valid)
    else:
        place = p2p_ptr + (image * patches + row - classes) * p2p_row_stride + patch
        share = mean / layers
        if not FIRST:
            share += tl.load(place, mask=valid, other=0.0)
        tl.store(place, share, mask=valid)


def given_mean(probabilities: Sequence[Tensor], classes: int) -> tuple[Tensor, Tensor]:
    """`eager.head_mean` in one launch a layer.

    Args:
        probabilities: per layer [B, M, T, T].
        classes: C.
    """
    batch, heads, tokens, _ = probabilities[0].shape
    patches, device = tokens - classes, probabilities[0].device
    row = triton.cdiv(patches, 16) * 16
    c2p = torch.empty(len(probabilities), batch, classes, row, device=device)
    p2p = torch.empty(batch, patches, row, device=device)
    block = min(1024, triton.next_power_of_2(patches))
    for number, given in enumerate(probabilities):
        layer = given if given.stride(-1) == 1 else given.contiguous()
        with torch.cuda.device_of(layer):
            given_kernel[(tokens, triton.cdiv(patches, block), batch)](
                layer, c2p[number], p2p, heads, classes, tokens, *layer.stride()[:3], row, row,
                len(probabilities), FIRST=number == 0, BLOCK=block,
            )  # fmt: skip
    return c2p[..., :patches], p2p[..., :patches]
