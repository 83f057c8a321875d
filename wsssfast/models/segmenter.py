"""Segmenters: what is trained on pseudo-labels, from images to scores of background and classes.

- trunk `resnet38`: DeepLabV1 as the paper and MCTformer train it (method §7), under the latter's
  names;
- a convolutional network of timm: DeepLabV3+ (Chen et al., 2018) of segmentation_models_pytorch;
- trunk `vit`: the classifier's network with its class tokens, and the linear decoder of Segmenter
  (Strudel et al., 2021) on its patch tokens.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from wsssfast.data.dataset import IGNORE
from wsssfast.errors import WsssError
from wsssfast.models.classifier import ClassTokenViT
from wsssfast.models.classifier_config import ClassifierConfig
from wsssfast.models.resnet38 import TAPS, ResNet38
from wsssfast.models.trunk import RESNET38, VIT, TrunkConfig, of_timm


@dataclass(frozen=True)
class SegmenterConfig(TrunkConfig):
    """Everything that rebuilds a segmenter's structure."""


class Segmenter(nn.Module):
    """Images to scores of background and C classes.

    Attributes:
        net: [B, 3, H, W] -> [B, C + 1, h, w]; H and W are multiples of its `multiple`. Its `core`
            is what starts from trained weights, its `new` the names of what never does, its
            `blocks` those of a ViT, or None; `normalises` where statistics of batches are used;
            `pixel_bytes` the memory that a pixel takes on its way through.

    Raises:
        WsssError: an unknown trunk.
    """

    kind = "segmenter"  # in checkpoints

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config
        scores = len(config.class_names) + 1
        self.net: LinearViT | DeepLabV1 | DeepLabV3Plus
        if config.trunk == VIT:
            if config.vit is None:
                raise WsssError("Expected a classifier for the trunk vit, found none.")
            self.net = LinearViT(config.vit, scores)
        elif config.trunk == RESNET38:
            self.net = DeepLabV1(scores)
        else:
            self.net = DeepLabV3Plus(config.trunk, scores)

    def forward(self, images: Tensor) -> Tensor:
        """Scores [B, C + 1, H, W], background first, bilinear from the network's grid.

        Args:
            images: [B, 3, H, W], normalised, of any size; padded with zeros as the network needs.
        """
        height, width = images.shape[-2:]
        by = self.net.multiple
        padded = F.pad(images, (0, -width % by, 0, -height % by))
        scores = F.interpolate(
            self.net(padded), padded.shape[-2:], mode="bilinear", align_corners=False
        )
        return scores[..., :height, :width]


class LinearViT(nn.Module):
    """A classifier's network, norm and a linear layer on its patch tokens."""

    new = ("norm.", "decoder.")
    normalises = False
    pixel_bytes = 400  # 120 measured of DeiT-Small at 1024 x 1024, 280 at most of others

    def __init__(self, config: ClassifierConfig, scores: int) -> None:
        super().__init__()
        self.vit = ClassTokenViT(config)
        self.vit.head = None
        self.norm = nn.LayerNorm(self.vit.embed_dim)
        self.decoder = nn.Linear(self.vit.embed_dim, scores)
        self.multiple = self.vit.patch_size

    @property
    def core(self) -> nn.Module:
        """The classifier's network."""
        return self.vit

    @property
    def blocks(self) -> nn.Sequential | None:
        """Of the ViT."""
        blocks: nn.Sequential = self.vit.blocks
        return blocks

    def forward(self, images: Tensor) -> Tensor:
        """[B, C + 1, h, w] of the patch grid."""
        tokens = self.vit.encode(images)[:, self.vit.prefix :]
        scores: Tensor = self.decoder(self.norm(tokens)).transpose(1, 2)
        h, w = self.vit.patch_grid(images)
        return scores.reshape(*scores.shape[:2], h, w)


class DeepLabV1(nn.Module):
    """ResNet38 and two convolutions of dilation 12 ([M], seg/network/resnet38_seg.py)."""

    new = ("fc8_seg_conv1.", "fc8_seg_conv2.")
    multiple = 1
    blocks = None
    normalises = False
    pixel_bytes = 4000  # 3,900 measured at 321 x 321

    def __init__(self, scores: int) -> None:
        super().__init__()
        self.core = ResNet38()
        self.fc8_seg_conv1 = nn.Conv2d(TAPS[-1], 512, 3, padding=12, dilation=12)
        self.fc8_seg_conv2 = nn.Conv2d(512, scores, 3, padding=12, dilation=12)
        for layer in (self.fc8_seg_conv1, self.fc8_seg_conv2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, images: Tensor) -> Tensor:
        """[B, C + 1, ceil(H / 8), ceil(W / 8)]."""
        scores: Tensor = self.fc8_seg_conv2(F.relu(self.fc8_seg_conv1(self.core(images)[-1])))
        return scores


class DeepLabV3Plus(nn.Module):
    """The library's network at output stride 16; scores at a quarter of the image's size."""

    new = ("whole.decoder.", "whole.segmentation_head.")
    multiple = 16
    blocks = None
    normalises = True
    pixel_bytes = 2000  # an estimate

    def __init__(self, arch: str, scores: int) -> None:
        super().__init__()
        import segmentation_models_pytorch as smp

        self.whole: nn.Module = of_timm(
            arch,
            16,
            lambda name: smp.DeepLabV3Plus(
                f"tu-{name}", encoder_weights=None, classes=scores, upsampling=1
            ),
        )

    @property
    def core(self) -> nn.Module:
        """The network of timm."""
        return self.whole.get_submodule("encoder.model")

    def forward(self, images: Tensor) -> Tensor:
        """[B, C + 1, H / 4, W / 4]."""
        scores: Tensor = self.whole(images)
        return scores


def segmenter_loss(scores: Tensor, targets: Tensor, confidence: float = 0.0) -> Tensor:
    """Cross-entropy of the pixels that are not 255, over the number of all pixels.

    Over all, so that a step's loss does not depend on how its images are shared out.

    Args:
        scores: [B, C + 1, H, W].
        targets: int64 [B, H, W] of 0..C and 255.
        confidence: power of the probability that weights each pixel, through which no gradient
            goes; the gradient is that of the generalised cross-entropy (1 - p^q) / q.
    """
    total = F.cross_entropy(scores, targets, ignore_index=IGNORE, reduction="none")
    if confidence:
        total = total * (-confidence * total.detach()).exp()
    return total.sum() / targets.numel()
