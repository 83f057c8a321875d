"""Scores walk over the affinities of their image, from a network or from attention (method §6)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from wsssfast.errors import WsssError
from wsssfast.kernels.affinity import boundary_affinity, pair_affinity
from wsssfast.kernels.random_walk import random_walk
from wsssfast.labels.options import VIT, LabelOptions, Walk
from wsssfast.models.affinity import STRIDE, AffinityNet
from wsssfast.models.checkpoint import load_affinity, weights_hash
from wsssfast.preprocess import normalise

LARGEST = 1 << 20  # pixels that a network looks at; it sees larger images smaller


@dataclass(frozen=True)
class Affinity:
    """What is known of one image.

    Attributes:
        pairs: [34, h, w] of its cells.
        boundary: [h, w] in [0, 1] where the network finds boundaries (IRN).
    """

    pairs: Tensor
    boundary: Tensor | None = None


def walk_by(affinity: str | Path, class_names: tuple[str, ...], beta: float, steps: int) -> Walk:
    """A walk by `vit`, or by the AffinityNet in a file.

    Raises:
        WsssError: constants out of range, or no AffinityNet of these classes.
    """
    if affinity == VIT:
        return Walk(VIT, beta, steps)
    net = load_affinity(affinity)
    if net.config.class_names and net.config.class_names != tuple(class_names):
        raise WsssError(
            f"Expected an AffinityNet of these {len(class_names)} classes in {affinity}, found one "
            f"of {len(net.config.class_names)} others.",
            "Train one for this data set with `wsssfast train-affinity`.",
        )
    return Walk(weights_hash(net), beta, steps)


def seen_by(net: AffinityNet, image: Tensor) -> Affinity:
    """The affinities of an image.

    The normalised image is padded with 0 to whole cells ([A]). One of more than 2^20 pixels is
    seen smaller, which keeps time and memory bounded; its cells are then larger.

    Args:
        net: in evaluation mode.
        image: uint8 RGB [H, W, 3], on its device.
    """
    with torch.no_grad():
        pixels = normalise(image[None], net.config)
        height, width = image.shape[:2]
        if height * width > LARGEST:
            shrink = (LARGEST / (height * width)) ** 0.5
            size = [max(STRIDE, int(side * shrink) // STRIDE * STRIDE) for side in (height, width)]
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        else:
            pixels = F.pad(pixels, (0, -width % STRIDE, 0, -height % STRIDE))
        found = net.project(pixels)
        if not net.config.boundary:
            return Affinity(pair_affinity(found)[0])
        boundary = found[:, 0].sigmoid()
        return Affinity(boundary_affinity(boundary)[0], boundary[0])


def walked(
    cam: Tensor,
    affinity: Affinity,
    options: LabelOptions,
    scores_of: Callable[[Tensor, LabelOptions], Tensor],
) -> Tensor:
    """Scores of background and classes after the walk, at full size.

    As PSA and MCTformer do, classes and backgrounds walk alike. With boundaries, as IRN does, the
    classes alone walk, from inside the boundaries; they are divided by the largest value, and the
    background is set against the result.

    Args:
        cam: [K, H, W] in [0, 1].
        affinity: of the image.
        options: background settings and constants of the walk.
        scores_of: [K, H, W] -> [G, 1 + K, H, W].

    Returns:
        float32 [G, 1 + K, H, W] in [0, 1].
    """
    assert options.walk
    size, grid = cam.shape[1:], affinity.pairs.shape[1:]

    def walk(maps: Tensor) -> Tensor:
        assert options.walk
        return random_walk([affinity.pairs], [maps], options.walk.beta, options.walk.steps)[0]

    if affinity.boundary is not None:
        found = _whole(walk(_cells(cam, grid) * (1 - affinity.boundary)), size)
        return scores_of(found / found.amax().clamp(min=1e-5), options)
    scores = scores_of(cam, options)
    settings = len(scores)
    distinct = torch.cat([scores[:, 0], scores[0, 1:]])  # classes are alike in all settings
    found = _whole(walk(_cells(distinct, grid)), size)
    return torch.stack([torch.cat([found[g : g + 1], found[settings:]]) for g in range(settings)])


def by_cell(scores: Tensor, cell: int) -> Tensor:
    """Mean scores [..., ceil(H / cell), ceil(W / cell)] of squares, 0 beyond the image ([A]).

    Args:
        scores: [..., H, W].
        cell: side of a square.
    """
    if cell == 1:
        return scores
    height, width = scores.shape[-2:]
    return F.avg_pool2d(F.pad(scores, (0, -width % cell, 0, -height % cell)), cell)


def _aligned(size: torch.Size, grid: torch.Size) -> bool:
    return tuple(grid) == tuple(-(-side // STRIDE) for side in size)


def _cells(maps: Tensor, grid: torch.Size) -> Tensor:
    """Maps [K, H, W] by cell of 8 x 8 pixels, or by as many larger or smaller ones as there are."""
    if _aligned(maps.shape[1:], grid):
        return by_cell(maps, STRIDE)
    return F.adaptive_avg_pool2d(maps, (grid[0], grid[1]))


def _whole(maps: Tensor, size: torch.Size) -> Tensor:
    """Maps [K, h, w] at full size."""
    height, width = size
    if _aligned(size, maps.shape[1:]):
        whole = F.interpolate(maps[None], scale_factor=STRIDE, mode="bilinear")[0]
        return whole[:, :height, :width]
    return F.interpolate(maps[None], (height, width), mode="bilinear")[0]
