"""Batch normalisations that only scale and shift, with the statistics that they came with."""

from typing import Self

from torch import nn


class FrozenNorms(nn.Module):
    """A network whose batch normalisations stay as they are in training."""

    def freeze_norms(self) -> None:
        """Take all batch normalisations out of training."""
        for norm in self._norms():
            norm.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """As usual, but that batch normalisations keep their statistics."""
        super().train(mode)
        for norm in self._norms():
            norm.eval()
        return self

    def _norms(self) -> list[nn.Module]:
        return [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]
