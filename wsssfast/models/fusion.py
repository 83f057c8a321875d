"""Learned weights of layers and heads, in the manner of WeakTr (Zhu et al., 2023)."""

import torch
from torch import Tensor, nn

_REDUCTION = 4


class AttentionFusion(nn.Module):
    """Adaptive attention fusion with mean pooling.

    There, two linear layers turn the mean of each head's attention map into the head's weight. Rows
    of attention sum to 1, so that this mean is 1 / T whatever the image: the weights depend on the
    number of tokens alone, and are had without the maps. WeakTr's published runs pool by the
    maximum, whose weights depend on the image; that is not done here.
    """

    def __init__(self, layers: int, heads: int) -> None:
        super().__init__()
        self.layers, self.heads = layers, heads
        maps = layers * heads
        self.fc = nn.Sequential(
            nn.Linear(maps, max(1, maps // _REDUCTION), bias=False),
            nn.ReLU(),
            nn.Linear(max(1, maps // _REDUCTION), maps, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, tokens: int) -> Tensor:
        """Weights [L, M] in (0, 1) for T tokens."""
        first = next(self.parameters())
        means = first.new_full((self.layers * self.heads,), 1 / tokens)
        weights: Tensor = self.fc(means)
        return weights.reshape(self.layers, self.heads)


def fused_attention(probabilities: list[Tensor], weights: Tensor) -> Tensor:
    """Weighted mean over layers and heads.

    Args:
        probabilities: per layer [B, M, T, T].
        weights: [L, M].

    Returns:
        [B, T, T].
    """
    parts = [
        torch.einsum("bmij,m->bij", layer, of_layer.to(layer.dtype))
        for layer, of_layer in zip(probabilities, weights, strict=True)
    ]
    return torch.stack(parts).sum(0) / weights.numel()
