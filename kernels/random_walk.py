"""A random walk over a grid of cells: maps flow between cells of high affinity (method §6).

    A = affinity^beta in both directions, 1 on the diagonal
    T = A with each column divided by its sum
    walked = maps @ T^steps

PSA and IRN square T, a dense N x N matrix; here T is applied `steps` times from the 34 values that
each cell holds of it: the same linear map. It is computed in float64: in float32 the same tiny
change, rounded the same way in each of hundreds of steps, would be off by 1e-6 and more. With cells
in one row after the other, a pair at offset (dy, dx) is dy * w + dx apart; where that runs over the
end of a row, no pair begins.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from wsssfast.kernels.affinity import OFFSETS
from wsssfast.kernels.backend import for_device

WalkBackend = Literal["auto", "torch", "triton"]


def random_walk(
    affinities: Sequence[Tensor],
    maps: Sequence[Tensor],
    beta: float = 8.0,
    steps: int = 64,
    *,
    backend: WalkBackend = "auto",
) -> list[Tensor]:
    """Walk the maps of images of any sizes.

    Args:
        affinities: [34, h, w] each in [0, 1], from `pair_affinity` or `boundary_affinity`.
        maps: [K, h, w] each, on the same device.
        beta: exponent of affinities, above 0.
        steps: of the walk; PSA's 2^logt.
        backend: "torch" works on any device; "auto" takes the faster.

    Returns:
        [K, h, w] each, of the dtype of the maps.

    Raises:
        ValueError: other shapes, or constants out of range.
    """
    if len(affinities) != len(maps):
        raise ValueError(f"expected as many affinities as maps, received {len(affinities)} and "
                         f"{len(maps)}")  # fmt: skip
    for affinity, one in zip(affinities, maps, strict=True):
        if one.ndim != 3 or affinity.shape != (len(OFFSETS), *one.shape[1:]):
            raise ValueError(
                f"expected affinities [{len(OFFSETS)}, h, w] and maps [K, h, w], received "
                f"{list(affinity.shape)} and {list(one.shape)}"
            )
    if not 0 < beta < float("inf") or steps < 0:
        raise ValueError(f"expected beta above 0 and steps of 0 or more, received {beta}, {steps}")
    if backend not in ("auto", "torch", "triton"):
        raise ValueError(f"expected auto, torch or triton, received {backend!r}")
    if not maps:
        return []
    if backend == "auto":
        backend = "triton" if for_device(maps[0].device) == "triton" else "torch"
    weights = [_pairwise(affinity, beta) for affinity in affinities]
    sums = [_column_sums(weight) for weight in weights]
    if backend == "torch":
        whole = zip(weights, sums, maps, strict=True)
        return [_walk(weight, own, one, steps).to(one.dtype) for weight, own, one in whole]
    from wsssfast.kernels.walk_triton import walk_all

    walked = walk_all(weights, sums, [one.double() for one in maps], steps)
    return [now.to(one.dtype) for now, one in zip(walked, maps, strict=True)]


def _pairwise(affinity: Tensor, beta: float) -> Tensor:
    """affinity^beta, float64 [34, h, w]; 0 where the other cell is outside the grid."""
    height, width = affinity.shape[1:]
    weights = affinity.to(torch.float64, copy=True).pow_(beta)
    for weight, (dy, dx) in zip(weights, OFFSETS, strict=True):
        weight[max(0, height - dy) :] = 0
        weight[:, max(0, width - dx) if dx > 0 else width :] = 0
        weight[:, : max(0, -dx)] = 0
    return weights


def _neighbours(weights: Tensor) -> list[tuple[Tensor, slice, slice]]:
    """Of each offset: the weights of its pairs, and the cells at both ends."""
    _, height, width = weights.shape
    cells = height * width
    distances = [
        (weight, dy * width + dx)
        for weight, (dy, dx) in zip(weights, OFFSETS, strict=True)
        if dy < height and abs(dx) < width  # others have no pair
    ]
    return [
        (weight.flatten()[: cells - distance], slice(0, cells - distance), slice(distance, cells))
        for weight, distance in distances
    ]


def _column_sums(weights: Tensor) -> Tensor:
    """Sums of the columns of A: [h * w]."""
    sums = torch.ones_like(weights[0]).flatten()
    for weight, near, far in _neighbours(weights):
        sums[near] += weight
        sums[far] += weight
    return sums


def _walk(weights: Tensor, sums: Tensor, maps: Tensor, steps: int) -> Tensor:
    """The walk in plain PyTorch."""
    share = 1 / sums
    now = maps.double().flatten(1).clone()  # the input stays
    then = torch.empty_like(now)
    # views are made once: for a few thousand cells they would take longer than the arithmetic
    turns = [
        (source, target, [
            (target[:, near], source[:, far], target[:, far], source[:, near], weight)
            for weight, near, far in _neighbours(weights)
        ])
        for source, target in ((now, then), (then, now))
    ]  # fmt: skip
    for step in range(steps):
        source, target, views = turns[step % 2]
        target.copy_(source)
        for to_near, of_far, to_far, of_near, weight in views:
            to_near.addcmul_(weight, of_far)
            to_far.addcmul_(weight, of_near)
        target *= share
    return turns[steps % 2][0].reshape(maps.shape)
