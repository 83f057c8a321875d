"""ResNet38, the wide network of Wu et al. (2019) at output stride 8, as PSA publishes it.

Names and shapes are those of `network/resnet38d.py` in jiwoon-ahn/psa, on which AffinityNet, SEAM
and MCTformer's segmenter build. Its batch normalisations are frozen: they only scale and shift.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from wsssfast.models.frozen_norms import FrozenNorms

TAPS = (512, 1024, 4096)  # channels


class ResBlock(nn.Module):
    """Two 3x3 convolutions, each after batch normalisation and ReLU, and a way around them."""

    def __init__(
        self,
        channels: int,
        middle: int,
        out: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        first_dilation: int | None = None,
    ) -> None:
        super().__init__()
        first = first_dilation or dilation
        self.bn_branch2a = nn.BatchNorm2d(channels)
        self.conv_branch2a = nn.Conv2d(
            channels, middle, 3, stride, padding=first, dilation=first, bias=False
        )
        self.bn_branch2b1 = nn.BatchNorm2d(middle)
        self.conv_branch2b1 = nn.Conv2d(
            middle, out, 3, padding=dilation, dilation=dilation, bias=False
        )
        self.conv_branch1: nn.Conv2d | None = None
        if channels != out or stride != 1:
            self.conv_branch1 = nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output, and the input after batch normalisation and ReLU."""
        entry = F.relu(self.bn_branch2a(x))
        around = x if self.conv_branch1 is None else self.conv_branch1(entry)
        inner = F.relu(self.bn_branch2b1(self.conv_branch2a(entry)))
        return around + self.conv_branch2b1(inner), entry


class BottleneckBlock(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with dropout of whole channels before the last two."""

    def __init__(self, channels: int, out: int, *, dilation: int, dropout: float) -> None:
        super().__init__()
        self.bn_branch2a = nn.BatchNorm2d(channels)
        self.conv_branch2a = nn.Conv2d(channels, out // 4, 1, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(out // 4)
        self.dropout_2b1 = nn.Dropout2d(dropout)
        self.conv_branch2b1 = nn.Conv2d(
            out // 4, out // 2, 3, padding=dilation, dilation=dilation, bias=False
        )
        self.bn_branch2b2 = nn.BatchNorm2d(out // 2)
        self.dropout_2b2 = nn.Dropout2d(dropout)
        self.conv_branch2b2 = nn.Conv2d(out // 2, out, 1, bias=False)
        self.conv_branch1 = nn.Conv2d(channels, out, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output, and the input after batch normalisation and ReLU."""
        entry = F.relu(self.bn_branch2a(x))
        inner = self.dropout_2b1(F.relu(self.bn_branch2b1(self.conv_branch2a(entry))))
        inner = self.dropout_2b2(F.relu(self.bn_branch2b2(self.conv_branch2b1(inner))))
        return self.conv_branch1(entry) + self.conv_branch2b2(inner), entry


class ResNet38(FrozenNorms):
    """The network without a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1a = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.b2 = ResBlock(64, 128, 128, stride=2)
        self.b2_1 = ResBlock(128, 128, 128)
        self.b2_2 = ResBlock(128, 128, 128)
        self.b3 = ResBlock(128, 256, 256, stride=2)
        self.b3_1 = ResBlock(256, 256, 256)
        self.b3_2 = ResBlock(256, 256, 256)
        self.b4 = ResBlock(256, 512, 512, stride=2)
        self.b4_1 = ResBlock(512, 512, 512)
        self.b4_2 = ResBlock(512, 512, 512)
        self.b4_3 = ResBlock(512, 512, 512)
        self.b4_4 = ResBlock(512, 512, 512)
        self.b4_5 = ResBlock(512, 512, 512)
        self.b5 = ResBlock(512, 512, 1024, dilation=2, first_dilation=1)
        self.b5_1 = ResBlock(1024, 512, 1024, dilation=2)
        self.b5_2 = ResBlock(1024, 512, 1024, dilation=2)
        self.b6 = BottleneckBlock(1024, 2048, dilation=4, dropout=0.3)
        self.b7 = BottleneckBlock(2048, 4096, dilation=4, dropout=0.5)
        self.bn7 = nn.BatchNorm2d(4096)
        self.freeze("conv1a")

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features [B, 512 | 1024 | 4096, ceil(H / 8), ceil(W / 8)], all after ReLU.

        Args:
            images: [B, 3, H, W], normalised.
        """
        x, taps = self.conv1a(images), {}
        for name, block in self.named_children():
            if isinstance(block, (ResBlock, BottleneckBlock)):
                x, taps[name] = block(x)
        return taps["b5"], taps["b6"], F.relu(self.bn7(x))

    def freeze(self, *names: str) -> None:
        """Take modules and all batch normalisations out of training."""
        self.freeze_norms()
        for name in names:
            self.get_submodule(name).requires_grad_(False)
