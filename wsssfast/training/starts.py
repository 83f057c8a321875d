"""What AffinityNet and segmenters start from: the fields of their trunk, and its weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from wsssfast.errors import WsssError
from wsssfast.models.affinity_weights import load_conv, load_resnet38
from wsssfast.models.backbone import preprocessing
from wsssfast.models.checkpoint import load_model
from wsssfast.models.classifier import ClassTokenViT
from wsssfast.models.resnet38 import ResNet38
from wsssfast.models.trunk import RESNET38, VIT

Start = Callable[[nn.Module], None]  # fills a network's `core`


def untrained(core: nn.Module) -> None:
    """Start from random weights."""


def start_of(trunk: str, source: str | None) -> tuple[dict[str, Any], Start]:
    """Fields of a `TrunkConfig`, and what puts weights into the `core` of such a network.

    Args:
        trunk: resnet38, vit, or timm's name of a convolutional network.
        source: of the weights: for vit the checkpoint of a classifier; for the others a file, or
            `none`; for timm's also `timm`, which downloads them and is what None means.

    Raises:
        WsssError: an unknown trunk, or no such weights.
    """
    if trunk == VIT:
        if source in (None, "none", "timm"):
            raise WsssError(
                "Expected a classifier that the trunk vit starts from, found none.",
                "Give its checkpoint by --pretrained.",
            )
        return from_classifier(load_model(str(source)))
    if trunk == RESNET38:
        if source in (None, "timm"):
            raise WsssError(
                "Expected weights of ResNet38, which timm does not provide, found none.",
                "Give --pretrained FILE (docs/affinity.md says where they are published), or none.",
            )
        if source == "none":
            return {"trunk": trunk}, untrained

        def published(core: nn.Module) -> None:
            assert isinstance(core, ResNet38)
            load_resnet38(core, Path(str(source)))

        return {"trunk": trunk}, published
    mean, std = preprocessing(trunk)
    fields = {"trunk": trunk, "mean": mean, "std": std}
    if source == "none":
        return fields, untrained
    return fields, lambda core: load_conv(core, trunk, source or "timm")


def from_classifier(classifier: ClassTokenViT) -> tuple[dict[str, Any], Start]:
    """The same of the trunk vit, from a classifier that is open already."""
    config = replace(classifier.config, final_norm=False, adaptive_fusion=False)

    def fill(core: nn.Module) -> None:
        assert isinstance(core, ClassTokenViT)
        core.take_network(classifier)

    return {"trunk": VIT, "vit": config, "mean": config.mean, "std": config.std}, fill
