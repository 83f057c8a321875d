"""A small segmenter: the classifier's network with a linear decoder on its patch tokens.

The class tokens stay: it can start from a trained classifier as it is. The decoder is that of
Segmenter-Linear (Strudel et al., 2021).
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsssfast.data.dataset import IGNORE
from wsssfast.models.classifier import ClassifierConfig, ClassTokenViT


class Segmenter(nn.Module):
    """Images to scores of background and C classes.

    Args:
        config: of the classifier whose network this is; a patch head is left out.
    """

    kind = "segmenter"  # in checkpoints

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = replace(config, patch_head=False)
        self.encoder = ClassTokenViT(self.config)
        self.norm = nn.LayerNorm(self.encoder.embed_dim)
        self.decoder = nn.Linear(self.encoder.embed_dim, len(config.class_names) + 1)

    def forward(self, images: Tensor) -> Tensor:
        """Scores [B, C + 1, H, W], background first, bilinear from the patch grid.

        Args:
            images: [B, 3, H, W], normalised.
        """
        tokens = self.encoder.encode(images)[:, self.encoder.num_classes :]
        scores = self.decoder(self.norm(tokens)).transpose(1, 2)
        grid = scores.reshape(*scores.shape[:2], *self.encoder.patch_grid(images))
        return F.interpolate(grid, images.shape[-2:], mode="bilinear", align_corners=False)


def segmenter_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the pixels that are not 255, over the number of all pixels.

    Over all, so that a step's loss does not depend on how its images are shared out.

    Args:
        scores: [B, C + 1, H, W].
        targets: int64 [B, H, W] of 0..C and 255.
    """
    total = F.cross_entropy(scores, targets, ignore_index=IGNORE, reduction="sum")
    return total / targets.numel()


def start_from_classifier(segmenter: Segmenter, classifier: ClassTokenViT) -> None:
    """Copy a classifier's network; the decoder stays as it is."""
    segmenter.encoder.take_network(classifier)


@torch.no_grad()
def segment(segmenter: Segmenter, images: Tensor) -> Tensor:
    """Masks uint8 [B, H, W] of 0..C: the class of the largest score, mean over image and mirror.

    Args:
        segmenter: in evaluation mode.
        images: [B, 3, H, W], normalised.
    """
    scores: Tensor = segmenter(images) + segmenter(images.flip(-1)).flip(-1)
    return scores.argmax(1).to(torch.uint8)
