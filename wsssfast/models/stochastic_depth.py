"""Stochastic depth whose randomness belongs to the sample, not to the batch.

A sample keeps or drops the same residual branches whatever the batch, the number of workers or the
number of accumulation steps, so that a run does not depend on them.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class SampleDropPath(nn.Module):
    """Multiplies each sample's residual branch by a factor given from outside.

    Attributes:
        factor: [B], 0 for a dropped sample and 1 / (1 - rate) for a kept one.
    """

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.factor = torch.ones(batch_size)  # no buffer: workers must not share it

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] times its factors in training; unchanged otherwise."""
        return x * self.factor[:, None, None].to(x.dtype) if self.training else x


def install_drop_path(blocks: nn.Sequential, batch_size: int) -> None:
    """Give every ViT block two `SampleDropPath` in place of timm's."""
    for block in blocks:
        slots: Any = block
        slots.drop_path1 = SampleDropPath(batch_size)
        slots.drop_path2 = SampleDropPath(batch_size)


def set_drop_path(blocks: nn.Sequential, factors: Tensor) -> None:
    """Set the factors [B, 2 * depth] of the coming batch, in place."""
    for index, block in enumerate(blocks):
        slots: Any = block
        for place, path in enumerate((slots.drop_path1, slots.drop_path2)):
            path.factor = path.factor.to(factors.device).copy_(factors[:, 2 * index + place])


def draw_factors(rng: np.random.RandomState, rate: float, depth: int) -> NDArray[np.float32]:
    """One sample's factors [2 * depth]; the rate rises linearly from 0 to `rate` with depth."""
    rates = np.repeat(np.linspace(0, rate, depth), 2)
    kept = rng.uniform(size=2 * depth) >= rates
    return (kept / (1 - rates)).astype(np.float32)
