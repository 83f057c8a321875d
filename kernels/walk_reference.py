"""Affinity and random walk as PSA and IRN define them: pair by pair, and with dense matrices.

The contract of `affinity` and `random_walk`: float64, one image, N x N.
"""

import torch
from torch import Tensor

Pair = tuple[int, int, int, int]  # y and x of both cells


def pairs(height: int, width: int, radius: int = 5) -> list[Pair]:
    """PSA's pairs: from rows [0, h - 4) and columns [4, w - 4), less than `radius` apart."""
    reach = radius - 1
    found = []
    for y in range(height - reach):
        for x in range(reach, width - reach):
            for dy in range(radius):
                for dx in range(-reach, radius):
                    forward = dy > 0 or dx > 0
                    if forward and dy * dy + dx * dx < radius * radius:
                        found.append((y, x, y + dy, x + dx))
    return found


def feature_affinity(features: Tensor, pair: Pair) -> Tensor:
    """exp(-mean |f_i - f_j|) of features [D, h, w]."""
    y, x, other_y, other_x = pair
    return torch.exp(-(features[:, y, x] - features[:, other_y, other_x]).abs().mean())


def dense_walk(
    values: dict[Pair, float], maps: Tensor, beta: float = 8.0, steps: int = 64
) -> Tensor:
    """Maps @ T^steps with the affinities of pairs, T normalised by columns.

    Args:
        values: of each pair; all others are 0, a cell's own is 1.
        maps: [K, h, w].
        beta: exponent of affinities.
        steps: of the walk.
    """
    _, height, width = maps.shape
    matrix = torch.eye(height * width, dtype=torch.float64)
    for (y, x, other_y, other_x), value in values.items():
        i, j = y * width + x, other_y * width + other_x
        matrix[i, j] = matrix[j, i] = value
    transition = matrix**beta
    transition = transition / transition.sum(0, keepdim=True)
    power: Tensor = torch.linalg.matrix_power(transition, steps)
    walked = maps.double().flatten(1) @ power
    return walked.reshape(maps.shape)


def affinity_loss(affinity: dict[Pair, Tensor], labels: Tensor) -> Tensor:
    """PSA's loss: a quarter each of pairs within background and within a class, half of others.

    Args:
        affinity: of each pair.
        labels: [h, w]: 0 background, class + 1, 255 ignore.
    """
    parts: dict[str, list[Tensor]] = {"background": [], "class": [], "different": []}
    for (y, x, other_y, other_x), value in affinity.items():
        one, other = int(labels[y, x]), int(labels[other_y, other_x])
        if 255 in (one, other):
            continue
        if one != other:
            parts["different"].append(-torch.log(1 + 1e-5 - value))
        else:
            parts["class" if one else "background"].append(-torch.log(value + 1e-5))
    means = {key: sum(found, torch.zeros(())) / (len(found) + 1e-5) for key, found in parts.items()}
    return means["background"] / 4 + means["class"] / 4 + means["different"] / 2


def boundary_affinity(boundary: Tensor, radius: int = 5) -> dict[Pair, float]:
    """IRN's: 1 - the largest boundary less than 1 off the line between two cells of the grid.

    Args:
        boundary: [h, w].
        radius: pairs are less than this apart.
    """
    height, width = boundary.shape
    cells = [(y, x) for y in range(height) for x in range(width)]
    found = {}
    for y, x in cells:
        for other_y, other_x in cells:
            dy, dx = other_y - y, other_x - x
            squared = dy * dy + dx * dx
            if (other_y, other_x) > (y, x) and squared < radius * radius:
                between = [
                    float(boundary[b, a])
                    for b, a in cells
                    if min(y, other_y) <= b <= max(y, other_y)
                    and min(x, other_x) <= a <= max(x, other_x)
                    and (dy * (a - x) - dx * (b - y)) ** 2 / squared < 1
                ]
                found[y, x, other_y, other_x] = 1 - max(between)
    return found
