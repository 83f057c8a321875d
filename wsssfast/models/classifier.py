"""The classifier: a plain ViT with one class token per class (method §1)."""

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsssfast import kernels
from wsssfast.errors import WsssError
from wsssfast.models.backbone import build_backbone, preprocessing, resize_positions
from wsssfast.models.block import captured_block


@dataclass(frozen=True)
class ClassifierConfig:
    """Everything that rebuilds a classifier's structure.

    Attributes:
        class_names: the C classes, in the order of the class tokens.
        arch: timm's name of the backbone.
        arch_options: keyword arguments of that backbone.
        image_size: training side in pixels, a multiple of the patch size.
        patch_head: whether there is a convolutional patch head (MCTformer-V2, the paper); without
            one (MCTformer-V1) the CAM is the class-to-patch attention alone.
        mean: per channel, of RGB in [0, 1].
        std: per channel, of RGB in [0, 1].
        names_assumed: whether the class names were only guessed from their number, as for a public
            checkpoint that holds none.
    """

    class_names: tuple[str, ...]
    arch: str = "deit_small_patch16_224"
    arch_options: dict[str, Any] = field(default_factory=dict)
    image_size: int = 224
    patch_head: bool = True
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    names_assumed: bool = False

    @classmethod
    def for_backbone(
        cls, arch: str, class_names: tuple[str, ...], image_size: int, **arch_options: Any
    ) -> "ClassifierConfig":
        """A configuration with the preprocessing that the backbone's own weights expect."""
        mean, std = preprocessing(arch)
        return cls(class_names, arch, arch_options, image_size, mean=mean, std=std)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "ClassifierConfig":
        """From `to_json`'s result. Raises TypeError or ValueError on anything else."""
        mean, std = (tuple(float(x) for x in found[key]) for key in ("mean", "std"))
        if len(mean) != 3 or len(std) != 3 or not all(0 < x < math.inf for x in std):
            raise ValueError("mean and std have three values each, std above 0")
        if not 1 <= found["image_size"] <= 8192:
            raise ValueError("an image size between 1 and 8192")
        return cls(
            class_names=tuple(str(name) for name in found["class_names"]),
            arch=str(found["arch"]),
            arch_options=dict(found["arch_options"]),
            image_size=int(found["image_size"]),
            patch_head=bool(found["patch_head"]),
            mean=mean,
            std=std,
            names_assumed=bool(found["names_assumed"]),
        )


class Capture(NamedTuple):
    """What one forward pass leaves for the refinement.

    Attributes:
        cam: [B, C, h, w] Original-CAM (Eq. 1), any sign; ones where there is no patch head.
        c2p: [B, C, N] class-to-patch attention.
        c2p_by_layer: [K, B, C, N], the K layers that it is the mean of, the last one last.
        p2p: [B, N, N] patch-to-patch attention.
        tokens: [B, N, D] patch tokens as they enter the head.
        class_logits: [B, C] (Eq. 7).
    """

    cam: Tensor
    c2p: Tensor
    c2p_by_layer: Tensor
    p2p: Tensor
    tokens: Tensor
    class_logits: Tensor

    def similarity(self, by: str) -> Tensor:
        """[B, N, N] that ranks related patches: by "attention" p2p, by "tokens" their cosine."""
        return kernels.token_similarity(self.tokens) if by == "tokens" else self.p2p

    def of_classes(self, chosen: Tensor) -> "Capture":
        """The capture of some classes of each image.

        Args:
            chosen: int64 [B, K], indices of classes.
        """
        _, _, h, w = self.cam.shape
        index = chosen[:, :, None].expand(-1, -1, h * w)
        layers = index.expand(len(self.c2p_by_layer), *index.shape)
        return self._replace(
            cam=self.cam.flatten(2).gather(1, index).reshape(*chosen.shape, h, w),
            c2p=self.c2p.gather(1, index),
            c2p_by_layer=self.c2p_by_layer.gather(2, layers),
            class_logits=self.class_logits.gather(1, chosen),
        )


class ClassTokenViT(nn.Module):
    """Multi-class-token ViT; parameter names are those of MCTformer's public checkpoints.

    Raises:
        WsssError: a backbone that is not a plain ViT, or sizes that do not fit.
    """

    kind = "classifier"  # in checkpoints

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        vit = build_backbone(config.arch, config.arch_options, config.image_size)
        self.patch_size: int = vit.patch_embed.patch_size[0]
        if config.image_size % self.patch_size or vit.patch_embed.patch_size[1] != self.patch_size:
            raise WsssError(
                f"Expected an image size that is a multiple of the patch size {self.patch_size}, "
                f"found {config.image_size}."
            )
        self.num_classes = len(config.class_names)
        self.grid = config.image_size // self.patch_size
        self.embed_dim: int = vit.embed_dim
        self.patch_embed = vit.patch_embed
        self.norm_pre = vit.norm_pre
        self.blocks = vit.blocks
        tokens = self.num_classes + self.grid**2
        self.cls_token = nn.Parameter(torch.zeros(1, self.num_classes, self.embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, self.embed_dim))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.head: nn.Conv2d | None = None
        if config.patch_head:
            self.head = nn.Conv2d(self.embed_dim, self.num_classes, 3, padding=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Class logits (Eq. 7) and patch logits (Eq. 9), each [B, C].

        Args:
            images: [B, 3, H, W], normalised. The patch logits are None without a patch head.
        """
        x = self.encode(images)
        class_logits = x[:, : self.num_classes].mean(-1)
        if self.head is None:
            return class_logits, None
        cam = self._original_cam(x[:, self.num_classes :], images)
        return class_logits, cam.mean((-2, -1))

    def encode(self, images: Tensor) -> Tensor:
        """Output tokens [B, C + N, D], class tokens first, before any final norm.

        Args:
            images: [B, 3, H, W], normalised.
        """
        x = self._embed(images)
        for block in self.blocks:
            x = block(x)
        return x

    def take_network(self, classifier: "ClassTokenViT") -> None:
        """Copy all weights of a classifier but its patch head's; this one has none."""
        state = {k: v for k, v in classifier.state_dict().items() if not k.startswith("head.")}
        self.load_state_dict(state)

    def tokens_after(self, images: Tensor, blocks: Collection[int]) -> list[Tensor]:
        """Patch tokens [B, N, D] after some of the blocks, counted from 1, before any final norm.

        Args:
            images: [B, 3, H, W], normalised.
            blocks: after which, ascending.
        """
        x, kept = self._embed(images), []
        for number, block in enumerate(self.blocks, 1):
            x = block(x)
            if number in blocks:
                kept.append(x[:, self.num_classes :])
        return kept

    @torch.no_grad()
    def capture(
        self,
        images: Tensor,
        c2p_layers: int = 3,
        p2p_layers: int = 12,
        backend: kernels.Backend = "auto",
    ) -> Capture:
        """One forward pass that keeps the head-and-layer mean of the attention, and no more.

        Args:
            images: [B, 3, H, W], normalised; H and W of any size from one patch up.
            c2p_layers: last layers that the class-to-patch attention averages.
            p2p_layers: last layers that the patch-to-patch attention averages.
            backend: of `kernels`.
        """
        x = self._embed(images)
        batch, classes = x.shape[0], self.num_classes
        total = torch.promote_types(images.dtype, torch.float32)
        attention = kernels.AttentionCapture(
            classes, len(self.blocks), c2p_layers, p2p_layers, backend
        )
        for layer, block in enumerate(self.blocks):
            x = captured_block(block, x, layer, attention)
        c2p, p2p = attention.means()
        tokens = x[:, classes:]
        if self.head is None:
            grid = self.patch_grid(images)
            cam = torch.ones(batch, classes, *grid, dtype=total, device=x.device)
        else:
            cam = self._original_cam(tokens, images).to(total)
        logits = x[:, :classes].mean(-1)
        return Capture(cam, c2p.mean(0), c2p, p2p, tokens.to(total), logits.to(total))

    def positions(self, height: int, width: int) -> Tensor:
        """Position embedding [1, C + h*w, D] for an image of height x width pixels.

        MCTformer's rule, kept to the letter: as trained only where the token count is the trained
        one and the image is square; else the class part stays and the patch part is resized
        bicubically with `scale_factor=((h + 0.1) / h0, (w + 0.1) / w0)`.
        """
        h, w = height // self.patch_size, width // self.patch_size
        if h * w == self.grid**2 and height == width:
            return self.pos_embed
        class_part = self.pos_embed[:, : self.num_classes]
        patch_part = self.pos_embed[:, self.num_classes :]
        image = patch_part.reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        factors = ((h + 0.1) / self.grid, (w + 0.1) / self.grid)
        image = F.interpolate(image, scale_factor=factors, mode="bicubic", align_corners=False)
        return torch.cat([class_part, image.flatten(2).transpose(1, 2)], dim=1)

    def patch_grid(self, images: Tensor) -> tuple[int, int]:
        """(h, w) of images [B, 3, H, W]."""
        return images.shape[2] // self.patch_size, images.shape[3] // self.patch_size

    def _embed(self, images: Tensor) -> Tensor:
        patches = self.patch_embed.norm(self.patch_embed.proj(images).flatten(2).transpose(1, 2))
        classes = self.cls_token.expand(images.shape[0], -1, -1)
        positions = self.positions(images.shape[2], images.shape[3])
        x: Tensor = self.norm_pre(torch.cat([classes, patches], dim=1) + positions)
        return x

    def _original_cam(self, tokens: Tensor, images: Tensor) -> Tensor:
        """Eq. 1: the 3x3 convolution over the patch tokens, before any final norm."""
        assert self.head is not None
        grid = tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *self.patch_grid(images))
        cam: Tensor = self.head(grid)
        return cam


def classifier_loss(class_logits: Tensor, patch_logits: Tensor | None, targets: Tensor) -> Tensor:
    """Eqs. 8, 10, 11: multi-label soft-margin loss of both logits, summed with weight 1.

    Args:
        class_logits: [B, C].
        patch_logits: [B, C] or None.
        targets: [B, C] of 0 and 1.
    """
    loss = F.multilabel_soft_margin_loss(class_logits, targets)
    if patch_logits is not None:
        loss = loss + F.multilabel_soft_margin_loss(patch_logits, targets)
    return loss


def init_from_backbone(model: ClassTokenViT, weights: dict[str, Tensor]) -> None:
    """Start a classifier from ImageNet weights under timm's key names ([M], method §1).

    Class token and the class part of the position embedding are repeated for every class; the
    patch part is resized bicubically; the classification head and the final norm are dropped.

    Raises:
        WsssError: weights of another architecture.
    """
    drop = ("head.", "head_dist.", "norm.", "fc_norm.")
    state = {k: v for k, v in weights.items() if not k.startswith(drop) and k != "dist_token"}
    own = model.state_dict()
    try:
        token, positions = state.pop("cls_token"), state.pop("pos_embed")
        classes, grid = model.num_classes, model.grid
        prefix = positions.shape[1] - math.isqrt(positions.shape[1]) ** 2  # 0 where patches only
        patch_part = resize_positions(positions[:, prefix:], (grid, grid))
        class_part = positions[:, :1] if prefix else torch.zeros_like(token[:, :1])
        class_part = class_part.expand(-1, classes, -1)
        state["cls_token"] = token[:, :1].expand(-1, classes, -1)
        state["pos_embed"] = torch.cat([class_part, patch_part], dim=1)
        wanted = {k for k in own if not k.startswith("head.")}
        if state.keys() != wanted or any(state[k].shape != own[k].shape for k in wanted):
            odd = sorted((state.keys() ^ wanted) or
                         {k for k in wanted if state[k].shape != own[k].shape})  # fmt: skip
            raise KeyError(odd[0])
    except (KeyError, RuntimeError) as error:
        raise WsssError(
            f"Expected ImageNet weights of {model.config.arch} under timm's names; they differ at "
            f"{error}.",
            "Give the file that belongs to this architecture.",
        ) from error
    model.load_state_dict(state, strict=False)
