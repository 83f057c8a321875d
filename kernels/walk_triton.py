"""The random walk in Triton: one program takes one map of one image through all steps.

    T now[i] = (now[i] + sum over offsets o of  A_o[i] now[i + o] + A_o[i - o] now[i - o]) / sums[i]
    then = 2 T now - before,  walked += factor then

A step needs all of the step before, so a program holds a whole map: its steps are divided by a
barrier of its threads alone, and nothing waits for another program. Maps of any sizes and any
number of images are one launch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from wsssfast.kernels.affinity import OFFSETS
from wsssfast.kernels.backend import interpreted

LAUNCH = ({"CELLS": 1024}, {"CELLS": 256})  # of a GPU, and of the interpreter's few programs
OPTIONS = {"num_warps": 16, "num_stages": 1}


def settings() -> dict[str, int]:
    """Keyword arguments of a launch."""
    return {**LAUNCH[interpreted()], **OPTIONS}


@triton.jit
def walk_kernel(
    weight_ptr,  # float64, of each image [34, cells]
    share_ptr,  # float64, of each image [cells]: 1 over the sums
    map_ptr,  # float64, of each image [K, cells]: the maps, and every second polynomial
    other_ptr,  # the same: zeros, and the others
    walked_ptr,  # the same: the maps times the first factor, and what is added to them
    factor_ptr,  # float64, of the second factor and on
    offset_ptr,  # int32 [34, 2]: dy and dx
    about_ptr,  # int64 [maps, 5]: cells, width, and where weights, shares and the map begin
    steps,
    OFFSETS: tl.constexpr,
    CELLS: tl.constexpr,
):
    """All steps of one map."""
    about = about_ptr + tl.program_id(0) * 5
    cells = tl.load(about)
    width = tl.load(about + 1)
    weight_ptr += tl.load(about + 2)
    share_ptr += tl.load(about + 3)
    begin = tl.load(about + 4)
    now_ptr = map_ptr + begin
    then_ptr = other_ptr + begin
    walked_ptr += begin
    for step in range(steps):
        factor = tl.load(factor_ptr + step)
        times = tl.where(step == 0, 1.0, 2.0)
        for tile in range(0, cells, CELLS):
            cell = tile + tl.arange(0, CELLS)
            valid = cell < cells
            total = tl.load(now_ptr + cell, mask=valid, other=0.0)
            for n in range(OFFSETS):
                down = tl.load(offset_ptr + 2 * n)
                right = tl.load(offset_ptr + 2 * n + 1)
                distance = down * width + right
                row_ptr = weight_ptr + n * cells
                after, before = cell + distance, cell - distance
                inside = valid & (after >= 0) & (after < cells)
                weight = tl.load(row_ptr + cell, mask=inside, other=0.0)
                total += weight * tl.load(now_ptr + after, mask=inside, other=0.0)
                inside = valid & (before >= 0) & (before < cells)
                weight = tl.load(row_ptr + before, mask=inside, other=0.0)
                total += weight * tl.load(now_ptr + before, mask=inside, other=0.0)
            share = times * tl.load(share_ptr + cell, mask=valid, other=0.0)
            then = share * total - tl.load(then_ptr + cell, mask=valid, other=0.0)
            tl.store(then_ptr + cell, then, mask=valid)
            walked = tl.load(walked_ptr + cell, mask=valid, other=0.0)
            tl.store(walked_ptr + cell, walked + factor * then, mask=valid)
        tl.debug_barrier()
        now_ptr, then_ptr = then_ptr, now_ptr


def walk_all(
    weights: list[Tensor], sums: list[Tensor], maps: list[Tensor], factors: list[float]
) -> list[Tensor]:
    """The walks of images of any sizes.

    Args:
        weights: float64 [34, h, w] each, 0 where the other cell is outside.
        sums: float64 [h * w] each, of the columns.
        maps: float64 [K, h, w] each.
        factors: of the Chebyshev polynomials (`random_walk.chebyshev`).
    """
    device = maps[0].device
    about, begins = [], [0, 0, 0]
    for one in maps:
        cells, (count, _, width) = one[0].numel(), one.shape
        about += [(cells, width, *begins[:2], begins[2] + n * cells) for n in range(count)]
        steps_on = (len(OFFSETS) * cells, cells, count * cells)
        begins = [begin + more for begin, more in zip(begins, steps_on, strict=True)]
    now = torch.cat([one.flatten() for one in maps])
    walked = now * factors[0]
    with torch.cuda.device_of(now):
        walk_kernel[(len(about),)](
            torch.cat([one.flatten() for one in weights]), 1 / torch.cat(sums),
            now, torch.zeros_like(now), walked,
            torch.tensor(factors[1:], dtype=torch.float64, device=device),
            torch.tensor(OFFSETS, dtype=torch.int32, device=device),
            torch.tensor(about, dtype=torch.int64, device=device), len(factors) - 1,
            OFFSETS=len(OFFSETS), **settings(),
        )  # fmt: skip
    parts = torch.split(walked, [one.numel() for one in maps])
    return [flat.reshape(one.shape) for flat, one in zip(parts, maps, strict=True)]
