"""Eq. 3, the choice: per row of a similarity the k columns with the largest values, in Triton.

A row's choice is two integers: a threshold and a cut. Column j is related where its value is above
the threshold, or equal to it with j < cut: ties go to the lowest index, as in `reference`. One
program holds one row in registers and bisects the float's bits, 32 halvings at most; then, only
where a tie crosses the cut, the index. No sort, no list of indices, no scratch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from wsssfast.kernels.bits import ordered_bits

_LEAST, _MOST = tl.constexpr(-(2**31)), tl.constexpr(2**31 - 1)


@triton.jit
def select_kernel(
    similarity_ptr,  # float32 [B, R, N]
    threshold_ptr,  # int32 [B, R]
    cut_ptr,  # int32 [B, R]
    rows,
    patches,
    count,
    batch_stride,
    row_stride,
    INCLUDE_SELF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row."""
    row = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK)
    valid = column < patches
    if not INCLUDE_SELF:
        valid = valid & (column != row)
    start = similarity_ptr + image * batch_stride + row.to(tl.int64) * row_stride
    bits = ordered_bits(tl.load(start + column, mask=valid, other=0.0))
    # the largest threshold that `count` columns reach lies between low and high
    low = tl.min(tl.where(valid, bits, _MOST), 0).to(tl.int64)
    high = tl.max(tl.where(valid, bits, _LEAST), 0).to(tl.int64)
    while low < high:
        middle = (low + high + 1) >> 1
        reached = tl.sum((valid & (bits >= middle.to(tl.int32))).to(tl.int32), 0)
        low = tl.where(reached >= count, middle, low)
        high = tl.where(reached < count, middle - 1, tl.where(reached == count, middle, high))
    threshold = low.to(tl.int32)
    tied = valid & (bits == threshold)
    room = count - tl.sum((valid & (bits > threshold)).to(tl.int32), 0)
    first = patches * 0  # the smallest cut that leaves `room` ties lies between first and last
    last = patches
    if tl.sum(tied.to(tl.int32), 0) > room:
        while first < last:
            middle = (first + last) >> 1
            enough = tl.sum((tied & (column < middle)).to(tl.int32), 0) >= room
            first = tl.where(enough, first, middle + 1)
            last = tl.where(enough, middle, last)
    place = image * rows + row
    tl.store(threshold_ptr + place, threshold)
    tl.store(cut_ptr + place, last)


def select(similarity: Tensor, count: int, include_self: bool = True) -> tuple[Tensor, Tensor]:
    """Threshold and cut of every row.

    Args:
        similarity: float32 [B, R, N], the first R <= N rows; the last dimension contiguous.
        count: k, at least 1; at most N, or N - 1 without the diagonal.
        include_self: whether the diagonal takes part.

    Returns:
        int32 [B, R] ordered bits of the threshold, and int32 [B, R] cuts.
    """
    batch, rows, patches = similarity.shape
    threshold = torch.empty(batch, rows, dtype=torch.int32, device=similarity.device)
    cut = torch.empty_like(threshold)
    block = triton.next_power_of_2(patches)
    with torch.cuda.device_of(similarity):
        select_kernel[(rows, batch)](
            similarity,
            threshold,
            cut,
            rows,
            patches,
            count,
            similarity.stride(0),
            similarity.stride(1),
            INCLUDE_SELF=include_self,
            BLOCK=block,
            num_warps=warps(block),
        )
    return threshold, cut


def warps(block: int) -> int:
    """One warp for up to 1024 columns, so that no barrier is needed; 32 values a thread."""
    return min(16, max(1, block // 1024))
