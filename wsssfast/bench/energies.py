"""Unary energies for timing a dense CRF where there is no classifier."""

import torch
import torch.nn.functional as F
from torch import Tensor


def smooth_energies(classes: int, size: tuple[int, int], seed: int) -> Tensor:
    """-log of smooth random scores [K, H, W] of (height, width), clipped at 1e-5."""
    coarse = torch.rand(1, classes, 12, 16, generator=torch.Generator().manual_seed(seed))
    return -F.interpolate(coarse, size, mode="bilinear")[0].clamp(1e-5, 1).log()
