"""A random walk over a grid of cells: maps flow between cells of high affinity (method §6).

    A = affinity^beta in both directions, 1 on the diagonal
    T = A with each column divided by its sum
    walked = maps @ T^steps

PSA and IRN square T, a dense N x N matrix; here T is applied from the 34 values that each cell
holds of it. A power is a sum of Chebyshev polynomials,

    x^n = 2^(1 - n) * sum over k = n, n - 2, … of C(n, (n - k) / 2) C_k(x),  C_0 halved,

whose factors are the chances of a coin's walk to end k from its start: beyond a few times sqrt(n)
they are nothing, and T, which is similar to a symmetric matrix, has its spectrum in [-1, 1]. So 64
steps take 46 applications, 256 take 98, with what is left out a hundred times below the rounding of
the result (Sachdeva and Vishnoi, 2014, section 3).

It is computed in float64: in float32 the same tiny change, rounded the same way in each of hundreds
of steps, would be off by 1e-6 and more. With cells in one row after the other, a pair at offset
(dy, dx) is dy * w + dx apart; where that runs over the end of a row, no pair begins.
"""

import math
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
        affinities: floats [34, h, w] each in [0, 1]: of each cell (y, x) with its neighbours
            (y + dy, x + dx), in the order of `wsssfast.kernels.affinity.OFFSETS`; from
            `pair_affinity` or `boundary_affinity` there, or one's own. A cell's affinity to itself
            is 1; values of neighbours outside the grid are not used.
        maps: floats [K, h, w] each, on the same device.
        beta: exponent of affinities, above 0.
        steps: of the walk; PSA's 2^logt.
        backend: "torch" works on any device; "auto" takes the faster.

    Returns:
        [K, h, w] each, of the dtype of the maps.

    Raises:
        ValueError: other shapes, affinities or constants out of range.
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
        if not affinity.is_floating_point() or not one.is_floating_point():
            raise ValueError(f"expected floats, received {affinity.dtype} and {one.dtype}")
        if affinity.requires_grad or one.requires_grad:
            raise ValueError("expected tensors without gradients: the walk has none")
        low, high = affinity.aminmax() if affinity.numel() else (0.0, 1.0)
        if not (low >= 0 and high <= 1):
            raise ValueError(f"expected affinities in [0, 1], received {low:.3g} to {high:.3g}")
    if not 0 < beta < float("inf") or steps < 0:
        raise ValueError(f"expected beta above 0 and steps of 0 or more, received {beta}, {steps}")
    if backend not in ("auto", "torch", "triton"):
        raise ValueError(f"expected auto, torch or triton, received {backend!r}")
    if not maps:
        return []
    if backend == "auto":
        backend = "triton" if for_device(maps[0].device) == "triton" else "torch"
    single = any(one.dtype != torch.float64 for one in maps)
    factors = chebyshev(steps, torch.finfo(torch.float32 if single else torch.float64).eps / 100)
    if backend == "torch":
        walked = [
            _walk(_pairwise(affinity, beta), one, factors)
            for affinity, one in zip(affinities, maps, strict=True)
        ]
    else:
        from wsssfast.kernels.walk_triton import walk_all

        weights = [_pairwise(affinity, beta) for affinity in affinities]
        sums = [_column_sums(weight) for weight in weights]
        walked = walk_all(weights, sums, [one.double() for one in maps], factors)
    return [_within(now, one) for now, one in zip(walked, maps, strict=True)]


def _within(walked: Tensor, maps: Tensor) -> Tensor:
    """In the dtype of the maps; a walk takes means, so no rounding shall leave a map's range."""
    least, most = maps.flatten(1).aminmax(dim=1)
    return walked.to(maps.dtype).clamp_(least[:, None, None], most[:, None, None])


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


def chebyshev(steps: int, left_out: float) -> list[float]:
    """Factors c_0, c_1, … of Chebyshev polynomials that sum to x^steps; they add up to 1.

    Args:
        steps: n of at least 0.
        left_out: what the factors that are left out may add up to.
    """

    def chance(k: int) -> float:  # that `steps` coins are k apart, either way
        if (steps - k) % 2:
            return 0.0
        ways = math.lgamma(steps + 1) - math.lgamma((steps + k) // 2 + 1)
        ways -= math.lgamma((steps - k) // 2 + 1)
        return math.exp(ways - steps * math.log(2)) * (2 if k else 1)

    least = min(steps, math.ceil(math.sqrt(2 * steps * math.log(4 / left_out))))  # Hoeffding
    factors = [chance(k) for k in range(least + 1)]
    rest = 0.0
    while rest + factors[-1] <= left_out / 2:
        rest += factors.pop()
    total = math.fsum(factors)
    return [factor / total for factor in factors]


def _walk(weights: Tensor, maps: Tensor, factors: list[float]) -> Tensor:
    """The walk in plain PyTorch: C_k+1 = 2 T C_k - C_k-1."""
    half = _column_sums(weights).div_(2)
    now = maps.to(torch.float64, copy=True).flatten(1)  # the input stays
    then = torch.zeros_like(now)
    walked = factors[0] * now
    # views are made once: for a few thousand cells they would take longer than the arithmetic
    turns = [
        (source, target, [
            (target[:, near], source[:, far], target[:, far], source[:, near], weight)
            for weight, near, far in _neighbours(weights)
        ])
        for source, target in ((now, then), (then, now))
    ]  # fmt: skip
    for k, factor in enumerate(factors[1:]):
        source, target, views = turns[k % 2]
        torch.addcmul(source, target, half, value=-1, out=target)
        for to_near, of_far, to_far, of_near, weight in views:
            to_near.addcmul_(weight, of_far)
            to_far.addcmul_(weight, of_near)
        target /= half
        if k == 0:
            target /= 2
        if factor:
            walked.add_(target, alpha=factor)
    return walked.reshape(maps.shape)
