"""AffinityNet (Ahn and Kwak, 2018): which near cells of an image belong together.

Three taps of a trunk at 1/8 of the image's size are projected, joined and projected again, with the
names and initialisation of PSA's `resnet38_aff.py`; affinities of the 34 near offsets follow from
the features, or in IRN's manner (Ahn et al., 2019) from one map of boundaries.
"""

from dataclasses import dataclass, replace
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsssfast.errors import WsssError
from wsssfast.kernels.affinity import boundary_affinity, pair_affinity
from wsssfast.models.classifier import ClassTokenViT
from wsssfast.models.classifier_config import ClassifierConfig
from wsssfast.models.frozen_norms import FrozenNorms
from wsssfast.models.resnet38 import TAPS, ResNet38
from wsssfast.models.trunk import RESNET38, VIT, TrunkConfig, of_timm

STRIDE = 8  # pixels of a cell
_WIDTHS = (64, 128, 256)
_FROZEN = ("conv1a", "b2", "b2_1", "b2_2")  # of ResNet38, as published


@dataclass(frozen=True)
class AffinityConfig(TrunkConfig):
    """Everything that rebuilds an AffinityNet's structure.

    Attributes:
        boundary: whether it finds boundaries instead of features.
    """

    boundary: bool = False

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "AffinityConfig":
        """From `to_json`'s result. Raises TypeError or ValueError on anything else."""
        return replace(super().from_json(found), boundary=bool(found["boundary"]))


class AffinityNet(nn.Module):
    """Images to affinities.

    Raises:
        WsssError: an unknown trunk.
    """

    kind = "affinity"  # in checkpoints

    def __init__(self, config: AffinityConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk, taps = _trunk(config)
        self.f8_3 = nn.Conv2d(taps[0], _WIDTHS[0], 1, bias=False)
        self.f8_4 = nn.Conv2d(taps[1], _WIDTHS[1], 1, bias=False)
        self.f8_5 = nn.Conv2d(taps[2], _WIDTHS[2], 1, bias=False)
        width = sum(_WIDTHS)
        self.f9 = nn.Conv2d(width, 1 if config.boundary else width, 1, bias=config.boundary)
        for layer in (self.f8_3, self.f8_4, self.f8_5):
            nn.init.kaiming_normal_(layer.weight)
        if not config.boundary:
            nn.init.xavier_uniform_(self.f9.weight, gain=4)

    def forward(self, images: Tensor) -> Tensor:
        """Affinities [B, 34, h, w] of a grid of cells of 8 x 8 pixels.

        Args:
            images: [B, 3, 8h, 8w], normalised.
        """
        x = self.project(images)
        return boundary_affinity(x[:, 0].sigmoid()) if self.config.boundary else pair_affinity(x)

    @property
    def core(self) -> nn.Module:
        """The part that published weights, or a classifier's, are put into."""
        found: nn.Module = getattr(self.trunk, "core", self.trunk)
        return found

    def project(self, images: Tensor) -> Tensor:
        """Features [B, 448, h, w], or the logits of boundaries [B, 1, h, w]."""
        layers = (self.f8_3, self.f8_4, self.f8_5)
        taps = zip(layers, self.trunk(images), strict=True)
        x: Tensor = self.f9(torch.cat([F.elu(layer(tap)) for layer, tap in taps], 1))
        return x if self.config.boundary else F.elu(x)


class ConvTrunk(FrozenNorms):
    """The last three stages of a convolutional network of timm, batch normalisations frozen."""

    def __init__(self, arch: str) -> None:
        super().__init__()
        net: Any = of_timm(
            arch,
            STRIDE,
            lambda name: timm.create_model(
                name, features_only=True, pretrained=False, output_stride=STRIDE
            ),
        )
        self.channels: tuple[int, ...] = tuple(net.feature_info.channels()[-3:])
        self.net: nn.Module = net
        self.freeze_norms()

    @property
    def core(self) -> nn.Module:
        """The part that published weights are put into."""
        return self.net

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features [B, D, h, w] of the last three stages."""
        found: list[Tensor] = self.net(images)[-3:]
        return found


class ViTTrunk(nn.Module):
    """Patch tokens of a classifier after one, two and three thirds of its blocks.

    It is given images at such a size that a patch is a cell: a patch size of 16 sees twice the
    size. Tokens grow with depth, so each tap is normalised.
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.vit = ClassTokenViT(config)
        self.vit.head = None
        depth = len(self.vit.blocks)
        self.after = tuple(max(1, depth * n // 3) for n in (1, 2, 3))
        self.norms = nn.ModuleList(nn.LayerNorm(self.vit.embed_dim) for _ in self.after)

    @property
    def core(self) -> nn.Module:
        """The part that a classifier's weights are put into."""
        return self.vit

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features [B, D, h, w] of the three taps."""
        factor = self.vit.patch_size / STRIDE
        if factor != 1:
            images = F.interpolate(
                images, scale_factor=factor, mode="bilinear", align_corners=False
            )
        kept = self.vit.tokens_after(images, self.after)
        return [
            norm(tokens).transpose(1, 2).unflatten(2, self.vit.patch_grid(images))
            for norm, tokens in zip(self.norms, kept, strict=True)
        ]


def _trunk(config: AffinityConfig) -> tuple[nn.Module, tuple[int, ...]]:
    """The trunk, and the channels of its taps."""
    if config.trunk == RESNET38:
        wide = ResNet38()
        wide.freeze(*_FROZEN)
        return wide, TAPS
    if config.trunk == VIT:
        if config.vit is None:
            raise WsssError("Expected a classifier for the trunk vit, found none.")
        vit = ViTTrunk(config.vit)
        return vit, (vit.vit.embed_dim,) * 3
    conv = ConvTrunk(config.trunk)
    return conv, conv.channels
