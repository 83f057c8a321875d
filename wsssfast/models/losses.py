"""What the classifier is trained by."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Logits(NamedTuple):
    """What the classifier says of images.

    Attributes:
        classes: [B, C], mean of each class token (Eq. 7); of one token for all, the patch logits.
        patches: [B, C], pooled Original-CAM (Eq. 9); None without a patch head, or where it is
            `classes`.
        fine: [B, C], mean of the CAM fused with learned attention (WeakTr); None without, and in
            evaluation.
        tokens: [L, B, C, D], class tokens after each layer; None unless asked for.
    """

    classes: Tensor
    patches: Tensor | None = None
    fine: Tensor | None = None
    tokens: Tensor | None = None


def classifier_loss(logits: Logits, targets: Tensor, contrast: float = 0.0) -> Tensor:
    """Eqs. 8, 10, 11: multi-label soft-margin loss of all logits, summed with weight 1.

    Args:
        logits: of the images.
        targets: [B, C] of 0 and 1.
        contrast: weight of `class_contrast` of the tokens.
    """
    loss = F.multilabel_soft_margin_loss(logits.classes, targets)
    for more in (logits.patches, logits.fine):
        if more is not None:
            loss = loss + F.multilabel_soft_margin_loss(more, targets)
    if contrast and logits.tokens is not None:
        loss = loss + contrast * class_contrast(logits.tokens, targets)
    return loss


def class_contrast(tokens: Tensor, targets: Tensor) -> Tensor:
    """MCTformer+'s contrast: each present class's token shall be like itself and no other.

    Cross-entropy of the cosine similarities of one class's token to all of the image's, mean over
    the present classes of an image, the layers and the images.

    Args:
        tokens: [L, B, C, D], class tokens after each layer.
        targets: [B, C] of 0 and 1.
    """
    unit = F.normalize(tokens.float(), dim=-1)
    own = -F.log_softmax(unit @ unit.transpose(-1, -2), -1).diagonal(dim1=-2, dim2=-1)
    present = targets.to(own.dtype)
    return ((own * present).sum(-1) / (present.sum(-1) + 1e-8)).mean()


def ranked_mean(cam: Tensor, decay: float) -> Tensor:
    """Global weighted ranking pooling: the n-th highest score of a map weighs decay to the n.

    Args:
        cam: [B, C, h, w].
        decay: in (0, 1]; 1 is the mean.

    Returns:
        [B, C].
    """
    if decay == 1:
        return cam.mean((-2, -1))
    scores = cam.flatten(2).sort(-1, descending=True).values
    ranks = torch.arange(scores.shape[-1], device=cam.device, dtype=torch.float32)
    weights = (decay**ranks).to(scores.dtype)
    return (scores * weights).sum(-1) / weights.sum()
