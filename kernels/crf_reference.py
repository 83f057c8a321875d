"""The dense CRF step by step: what "correct" means for every faster path.

Plain PyTorch on CPU that spends memory and time freely: whole coordinates instead of packed keys,
values in the precision of the unary (float64 for a reference). Only the geometry is in float32
always, as in Kraehenbuehl and Koltun's code: rounding decides which simplex a pixel is in.
"""

import numpy as np
import torch
from torch import Tensor


def mean_field(
    image: Tensor,
    unary: Tensor,
    terms: list[tuple[float, float, float]],
    iterations: int,
) -> Tensor:
    """Marginals of one image.

    Args:
        image: uint8 RGB [H, W, 3].
        unary: [K, H, W] energies.
        terms: (sxy, srgb, compat) of each kernel; one over positions alone has an infinite srgb.
        iterations: rounds.

    Returns:
        [K, H, W] of the unary's dtype.
    """
    energy = unary.flatten(1).t()
    kernels = []
    for sxy, srgb, compat in terms:
        lattice = permutohedral(features(image, sxy, srgb))
        ones = torch.ones(len(energy), 1, dtype=unary.dtype)
        norm = (gaussian(lattice, ones) + 1e-20) ** -0.5
        kernels.append((lattice, norm, compat))
    found = torch.softmax(-energy, 1)
    for _ in range(iterations):
        message = torch.zeros_like(energy)
        for lattice, norm, compat in kernels:
            message += compat * norm * gaussian(lattice, norm * found)
        found = torch.softmax(-energy + message, 1)
    return found.t().reshape(unary.shape)


def features(image: Tensor, sxy: float, srgb: float) -> Tensor:
    """float32 [P, 2] positions over sxy, or [P, 5] with colours over srgb."""
    height, width = image.shape[:2]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    columns = [x.flatten() / sxy, y.flatten() / sxy]
    if srgb < float("inf"):
        columns += [colour.flatten() / srgb for colour in image.unbind(-1)]
    return torch.stack(columns, 1)


Permutohedral = tuple[Tensor, Tensor, Tensor]


def permutohedral(feature: Tensor) -> Permutohedral:
    """The lattice of pixels with d features.

    Returns:
        Vertices int64 [P, d + 1] and weights float32 [P, d + 1] of pixels, and the neighbours int64
        [d + 1, 2, V] of vertices; V is none.
    """
    pixels, d = feature.shape
    deviation = np.float32(np.sqrt(2 / 3) * (d + 1))
    elevated = torch.zeros(pixels, d + 1)
    total = torch.zeros(pixels)
    for j in range(d, 0, -1):  # onto the plane of coordinates that sum to 0
        scaled = feature[:, j - 1] * float(np.float32(deviation / np.sqrt(j * (j + 1))))
        elevated[:, j] = total - j * scaled
        total = total + scaled
    elevated[:, 0] = total
    down = float(np.float32(1 / (d + 1)))
    nearest = torch.round(elevated * down)
    left_over = elevated - nearest * (d + 1)
    order = torch.arange(d + 1)
    larger = left_over[:, None, :] > left_over[:, :, None]
    tied_before = (left_over[:, None, :] == left_over[:, :, None]) & (order < order[:, None])
    rank = (larger | tied_before).sum(-1) + nearest.sum(1, keepdim=True).long()
    shift = (rank < 0).long() - (rank > d).long()
    rank, nearest = rank + (d + 1) * shift, nearest + shift
    part = ((elevated - nearest * (d + 1)) * down).gather(1, rank.argsort(1))  # falling
    weight = torch.empty(pixels, d + 1)
    weight[:, 0] = 1 + part[:, d] - part[:, 0]
    for k in range(1, d + 1):
        weight[:, k] = part[:, d - k] - part[:, d - k + 1]
    corners = torch.stack(
        [(d + 1) * nearest.long() + r - (d + 1) * (rank > d - r) for r in range(d + 1)], 1
    )
    keys, vertex = torch.unique(corners.reshape(-1, d + 1), dim=0, return_inverse=True)
    known = {tuple(key): n for n, key in enumerate(keys.tolist())}
    neighbours = torch.empty(d + 1, 2, len(keys), dtype=torch.int64)
    for axis in range(d + 1):
        step = torch.full((d + 1,), -1)
        step[axis] = d
        for side, way in enumerate((1, -1)):
            near = [known.get(tuple(key), len(keys)) for key in (keys + way * step).tolist()]
            neighbours[axis, side] = torch.tensor(near)
    return vertex.reshape(pixels, d + 1), weight, neighbours


def gaussian(lattice: Permutohedral, values: Tensor) -> Tensor:
    """Splat, blur and slice [P, n]."""
    vertex, weight, neighbours = lattice
    corners = range(vertex.shape[1])
    none = neighbours.shape[2]
    vertices = values.new_zeros(none + 1, values.shape[1])
    for corner in corners:
        vertices.index_add_(0, vertex[:, corner], weight[:, corner, None] * values)
    for left, right in neighbours:
        vertices[:none] += (vertices[left] + vertices[right]) / 2
    taken = torch.zeros_like(values)
    for corner in corners:
        taken += weight[:, corner, None] * vertices[vertex[:, corner]]
    return taken / (1 + 2.0 ** -(len(corners) - 1))
