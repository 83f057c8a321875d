"""Sizes that an operation sees, and the least work that they make."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from wsssfast.bench.cases import Work, dtype_of
from wsssfast.bench.options import Spec
from wsssfast.cam_options import CamOptions
from wsssfast.errors import WsssError
from wsssfast.kernels import reference
from wsssfast.models.classifier import ClassTokenViT
from wsssfast.models.classifier_config import ClassifierConfig

METHOD = CamOptions()  # the paper's: layers, ratio, alpha


@dataclass(frozen=True)
class Shape:
    """Sizes that an operation sees.

    Attributes:
        batch: B.
        layers: L of the network.
        heads: M.
        width: d of a head.
        classes: C.
        per_image: classes that are refined.
        patches: N.
        dtype: of queries, keys and values; all else is float32.
        device: cpu or cuda.
    """

    batch: int
    layers: int
    heads: int
    width: int
    classes: int
    per_image: int
    patches: int
    dtype: torch.dtype
    device: str

    @property
    def tokens(self) -> int:
        """T = C + N."""
        return self.classes + self.patches

    @property
    def related(self) -> int:
        """The k of Eq. 3."""
        return reference.related_count(METHOD.ratio, self.patches)

    @property
    def c2p_layers(self) -> int:
        """Layers of the class rows."""
        return min(METHOD.c2p_layers, self.layers)

    @property
    def p2p_layers(self) -> int:
        """Layers of the patch rows."""
        return min(METHOD.p2p_layers, self.layers)


def shape_of(spec: Spec) -> Shape:
    """The sizes of an operation in the network that a spec names.

    Raises:
        WsssError: no such network, or images of less than a patch.
    """
    patch, layers, heads, width = _network(spec.arch, spec.classes)
    patches = (spec.size[0] // patch) * (spec.size[1] // patch)
    if not patches:
        raise WsssError(
            f"Expected images of at least one patch, {patch} pixels a side, found "
            f"{spec.size[0]}x{spec.size[1]}."
        )
    return Shape(
        spec.batch, layers, heads, width, spec.classes, spec.per_image, patches,
        dtype_of(spec.precision), spec.device,
    )  # fmt: skip


def config_of(arch: str, classes: int) -> ClassifierConfig:
    """The network of a spec, for images of 224 pixels as its positions would be trained."""
    return ClassifierConfig.for_backbone(arch, tuple(f"class{n}" for n in range(classes)), 224)


@lru_cache(maxsize=8)
def _network(arch: str, classes: int) -> tuple[int, int, int, int]:
    """Patch size, layers, heads, and width of a head."""
    with torch.device("meta"):
        model = ClassTokenViT(config_of(arch, classes))
    if model.prefix > model.num_tokens or model.rope is not None:
        raise WsssError(
            f"Expected a network that the benchmark's peers can walk, found {arch} with registers "
            f"or rotary positions.",
            "Such as deit_small_patch16_224.",
        )
    attention: Any = model.blocks[0].attn
    return model.patch_size, len(model.blocks), attention.num_heads, attention.head_dim


def attention_work(shape: Shape) -> Work:
    """Queries, keys, values and outputs moved once; two products of T x T x d a layer and head."""
    size = shape.layers * shape.batch * shape.heads * shape.tokens * shape.width
    return Work(
        4 * size * shape.dtype.itemsize + 4 * _means_elements(shape), 4 * size * shape.tokens
    )


def mean_work(shape: Shape) -> Work:
    """Queries and keys read once, and the products of the rows and columns that are kept."""
    size = shape.layers * shape.batch * shape.heads * shape.tokens * shape.width
    rows = shape.p2p_layers * shape.patches + shape.c2p_layers * shape.classes
    products = shape.batch * shape.heads * rows * shape.patches * shape.width
    return Work(2 * size * shape.dtype.itemsize + 4 * _means_elements(shape), 2 * products)


def given_work(shape: Shape) -> Work:
    """The patch columns of the last layers' attention read once and added up."""
    read = shape.c2p_layers * shape.batch * shape.heads * shape.tokens * shape.patches
    return Work(read * shape.dtype.itemsize + 4 * _means_elements(shape), read)


def map_work(shape: Shape, maps: int, each: int) -> Work:
    """p2p read once, so many maps [B, K, N] moved, so many operations an element of a map."""
    size = shape.batch * shape.per_image * shape.patches
    return Work(4 * (shape.batch * shape.patches**2 + maps * size), size * each)


def attention_size(shape: Shape) -> int:
    """Bytes of one layer's attention [B, M, T, T] in float32."""
    return 4 * shape.batch * shape.heads * shape.tokens**2


def topk_size(shape: Shape) -> int:
    """Bytes of a list of the related patches, and of what is gathered by it."""
    return shape.batch * shape.patches * shape.related * (8 + 4 * shape.per_image)


def _means_elements(shape: Shape) -> int:
    """Elements of c2p by layer and of p2p."""
    return shape.batch * shape.patches * (shape.c2p_layers * shape.classes + shape.patches)
