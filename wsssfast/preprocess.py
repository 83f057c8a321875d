"""From a PIL image to the network's input, as torchvision's ToTensor and Normalize do it."""

from functools import cache
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor


class Normalisation(Protocol):
    """What a network's configuration says of its input: of RGB in [0, 1], per channel."""

    @property
    def mean(self) -> tuple[float, float, float]: ...  # noqa: D102

    @property
    def std(self) -> tuple[float, float, float]: ...  # noqa: D102


def to_tensor(images: list[Image.Image], config: Normalisation) -> Tensor:
    """Normalised float32 [B, 3, H, W] of RGB images of one size.

    Args:
        images: RGB, all of one size.
        config: whose mean and std to use.
    """
    return normalise(torch.from_numpy(np.stack([np.asarray(image) for image in images])), config)


def normalise(pixels: Tensor, config: Normalisation) -> Tensor:
    """Normalised float32 [B, 3, H, W] of RGB pixels uint8 [B, H, W, 3], on their device."""
    mean, std = _statistics(config.mean, config.std, pixels.device)
    return pixels.permute(0, 3, 1, 2).to(torch.float32).div_(255).sub_(mean).div_(std)


@cache
def _statistics(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Both as [3, 1, 1]; made once, as making them on a GPU waits for it."""
    return (
        torch.tensor(mean, device=device).view(3, 1, 1),
        torch.tensor(std, device=device).view(3, 1, 1),
    )


def resize(image: Image.Image, scale: float, least: int) -> Image.Image:
    """PIL-bicubic resize of both sides to round(side * scale) ([M], method §5).

    A side below `least` (one patch) becomes `least`: the rule for tiny images is ours.
    """
    width, height = (max(least, round(side * scale)) for side in image.size)
    if (width, height) == image.size:
        return image
    return image.resize((width, height), Image.Resampling.BICUBIC)
