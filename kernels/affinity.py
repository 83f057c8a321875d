"""Affinities between near cells of a grid: from features (Ahn and Kwak, 2018) or from boundaries.

A pair is two cells at one of the 34 offsets within a radius of 5; the affinity of cell (y, x) and
cell (y + dy, x + dx) is kept at (y, x), so that a whole grid takes 34 values a cell, never N x N.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

RADIUS = 5
OFFSETS = tuple(
    (dy, dx)
    for dy in range(RADIUS)
    for dx in range(1 if dy == 0 else 1 - RADIUS, RADIUS)
    if dy * dy + dx * dx < RADIUS * RADIUS
)
_REACH = RADIUS - 1


def starts(height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of the cells from which PSA lets pairs run; none below a grid of 5 x 9.

    Cells at the border are in fewer pairs for it ([A], method §6).
    """
    rows, columns = max(0, height - _REACH), max(_REACH, width - _REACH)
    return slice(0, rows), slice(_REACH, columns)


def pair_affinity(features: Tensor) -> Tensor:
    """exp(-mean over channels of abs(f_i - f_j)) of all pairs.

    Args:
        features: [B, D, h, w].

    Returns:
        [B, 34, h, w] in (0, 1]; 0 where no pair begins (`starts`). Differentiable.

    Raises:
        ValueError: other dimensions.
    """
    if features.ndim != 4:
        raise ValueError(f"expected features [B, D, h, w], received {list(features.shape)}")
    return _PairAffinity.apply(features)  # type: ignore[no-any-return]


class _PairAffinity(torch.autograd.Function):
    """Differences are made again in the backward pass: kept, they would take 34 times the features.

    The gradient of a difference of 0 is 0, as PyTorch's of abs.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        batch, _, height, width = features.shape
        affinity = features.new_zeros(batch, len(OFFSETS), height, width)
        rows, columns = starts(height, width)
        for n, (source, target) in enumerate(pairs(features)):
            affinity[:, n, rows, columns] = (source - target).abs_().mean(1).neg_().exp_()
        ctx.save_for_backward(features, affinity)
        return affinity

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        features, affinity = ctx.saved_tensors
        _, channels, height, width = features.shape
        rows, columns = starts(height, width)
        falls = (gradient * affinity / -channels)[:, :, rows, columns]
        result = torch.zeros_like(features)
        both = zip(pairs(features), pairs(result), strict=True)
        for n, ((source, target), (to_source, to_target)) in enumerate(both):
            change = (source - target).sign_().mul_(falls[:, n, None])
            to_source += change
            to_target -= change
        return result


def pairs(grid: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Views of a grid [..., h, w] at both ends of the pairs at each offset."""
    rows, columns = starts(*grid.shape[-2:])
    return [
        (
            grid[..., rows, columns],
            grid[..., rows.start + dy : rows.stop + dy, columns.start + dx : columns.stop + dx],
        )
        for dy, dx in OFFSETS
    ]


def boundary_affinity(boundary: Tensor) -> Tensor:
    """1 - the strongest boundary on the way between the cells of each pair (IRN, Ahn et al. 2019).

    The way holds the cells less than 1 off the straight line, ends included.

    Args:
        boundary: [B, h, w] in [0, 1].

    Returns:
        [B, 34, h, w]; 0 where the other cell is outside. Differentiable.

    Raises:
        ValueError: other dimensions.
    """
    if boundary.ndim != 3:
        raise ValueError(f"expected boundaries [B, h, w], received {list(boundary.shape)}")
    height, width = boundary.shape[1:]
    around = F.pad(boundary, (_REACH, _REACH, 0, _REACH), value=1.0)

    def moved(dy: int, dx: int) -> Tensor:
        return around[:, dy : dy + height, _REACH + dx : _REACH + dx + width]

    strongest = [torch.stack([moved(*cell) for cell in way(*o)]).amax(0) for o in OFFSETS]
    return 1 - torch.stack(strongest, 1)


def near_affinity(attention: Tensor, grid: tuple[int, int]) -> Tensor:
    """Affinities of near patches by how much they attend to one another.

    (a_ij + a_ji) / (m_i + m_j), m_i the most that patch i attends to any patch around it, itself
    included: in [0, 1] and alike in both directions, whatever share goes to far patches. Ours; no
    network is trained for it.

    Args:
        attention: [N, N] of at least 0, rows attend, N = h * w.
        grid: (h, w).

    Returns:
        [34, h, w]; 0 where the other patch is outside.
    """
    height, width = grid
    cells = torch.arange(height * width, device=attention.device).reshape(grid)
    most = attention.diagonal().clone()
    both = attention.new_zeros(len(OFFSETS), height * width)
    ends = []
    for total, (dy, dx) in zip(both, OFFSETS, strict=True):
        near = cells[: max(0, height - dy), max(0, -dx) : max(0, width - max(0, dx))].flatten()
        far = near + dy * width + dx
        there, back = attention[near, far], attention[far, near]
        total[near] = there + back
        most[near] = torch.maximum(most[near], there)
        most[far] = torch.maximum(most[far], back)
        ends.append((near, far))
    for total, (near, far) in zip(both, ends, strict=True):
        total[near] /= (most[near] + most[far]).clamp_(min=torch.finfo(most.dtype).tiny)
    return both.reshape(-1, *grid)


def way(dy: int, dx: int) -> list[tuple[int, int]]:
    """Cells between (0, 0) and (dy, dx), both included, less than 1 off the line between them."""
    columns = range(min(0, dx), max(0, dx) + 1)
    return [
        (y, x) for y in range(dy + 1) for x in columns if (dy * x - dx * y) ** 2 < dy * dy + dx * dx
    ]
