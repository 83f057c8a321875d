"""The classifier: a plain ViT with one class token per class (method §1)."""

import math
import re
from collections.abc import Collection
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsssfast import kernels
from wsssfast.errors import WsssError
from wsssfast.models.backbone import build_backbone, resize_positions
from wsssfast.models.block import attending_block, captured_block, plain_block
from wsssfast.models.classifier_config import ClassifierConfig
from wsssfast.models.fusion import AttentionFusion, fused_attention
from wsssfast.models.losses import Logits, ranked_mean


class Capture(NamedTuple):
    """What one forward pass leaves for the refinement.

    Attributes:
        cam: [B, C, h, w] Original-CAM (Eq. 1), any sign; ones where there is no patch head.
        c2p: [B, C, N] class-to-patch attention.
        c2p_by_layer: [K, B, C, N], the K layers that it is the mean of, the last one last.
        p2p: [B, N, N] patch-to-patch attention.
        tokens: [B, N, D] patch tokens as they enter the head.
        class_logits: [B, C] (Eq. 7), as of `Logits.classes`.
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

    Attributes:
        num_classes: C.
        num_tokens: class tokens: C, or 1 for all.
        prefix: tokens before those of patches: class tokens, then registers.
        keeps_tokens: whether the logits hold the class tokens after each layer, for the contrast.

    Raises:
        WsssError: a backbone that is not a plain ViT, or sizes that do not fit.
    """

    kind = "classifier"  # in checkpoints

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        vit: Any = build_backbone(config.arch, config.arch_options, config.image_size)
        self.patch_size: int = vit.patch_embed.patch_size[0]
        if config.image_size % self.patch_size or vit.patch_embed.patch_size[1] != self.patch_size:
            raise WsssError(
                f"Expected an image size that is a multiple of the patch size {self.patch_size}, "
                f"found {config.image_size}."
            )
        self.num_classes, self.num_tokens = len(config.class_names), config.tokens
        self.keeps_tokens = False
        self.grid = config.image_size // self.patch_size
        self.embed_dim: int = vit.embed_dim
        self.patch_embed = vit.patch_embed
        self.norm_pre = vit.norm_pre
        self.blocks = nn.Sequential(*vit.blocks)
        self.rope: Any = getattr(vit, "rope", None)
        self.reg_token: nn.Parameter | None = vit.reg_token
        registers = 0 if self.reg_token is None else self.reg_token.shape[1]
        self.prefix = self.num_tokens + registers
        self.cls_token = nn.Parameter(torch.zeros(1, self.num_tokens, self.embed_dim))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.pos_embed: nn.Parameter | None = None
        if vit.pos_embed is not None:
            tokens = self.num_tokens + self.grid**2
            self.pos_embed = nn.Parameter(torch.zeros(1, tokens, self.embed_dim))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for block in vit.blocks:
            if self.rope is not None:
                block.attn.num_prefix_tokens = self.prefix  # what its rotation leaves out
        self.head: nn.Conv2d | None = None
        if config.patch_head:
            self.head = nn.Conv2d(self.embed_dim, self.num_classes, 3, padding=1)
        self.norm: nn.Module | None = vit.norm if config.final_norm else None
        self.fusion: AttentionFusion | None = None
        if config.adaptive_fusion:
            first: Any = self.blocks[0]
            self.fusion = AttentionFusion(len(self.blocks), first.attn.num_heads)

    def forward(self, images: Tensor) -> Logits:
        """What is in the images.

        Args:
            images: [B, 3, H, W], normalised.
        """
        x, rope = self._embed(images), self._rotary(images)
        after: list[Tensor] = []
        maps: list[Tensor] = []
        for block in self.blocks:
            if self.fusion is not None and self.training:
                x, probabilities = attending_block(block, x, rope)
                maps.append(probabilities.detach())
            else:
                x = plain_block(block, x, rope)
            if self.keeps_tokens:
                after.append(x[:, : self.num_tokens])
        tokens = torch.stack(after) if after else None
        if self.head is None:
            return Logits(x[:, : self.num_tokens].mean(-1), tokens=tokens)
        cam = self._original_cam(self._head_tokens(x), images)
        patches = ranked_mean(cam, self.config.patch_decay)
        fine = self._fine_logits(cam, maps) if maps else None
        if self.config.one_token:
            return Logits(patches, fine=fine, tokens=tokens)
        return Logits(x[:, : self.num_tokens].mean(-1), patches, fine, tokens)

    def _fine_logits(self, cam: Tensor, maps: list[Tensor]) -> Tensor:
        """WeakTr's: mean of the map that learned attention makes; only its weights are trained."""
        assert self.fusion is not None
        attention = fused_attention(maps, self.fusion(maps[0].shape[-1]))
        c2p = attention[:, : self.num_tokens, self.prefix :]
        p2p = attention[:, self.prefix :, self.prefix :]
        product = torch.relu(cam.detach().flatten(2)) * c2p
        return (product @ p2p.transpose(-2, -1)).mean(-1)

    def encode(self, images: Tensor) -> Tensor:
        """Output tokens [B, prefix + N, D], class tokens first, before any final norm.

        Args:
            images: [B, 3, H, W], normalised.
        """
        x, rope = self._embed(images), self._rotary(images)
        for block in self.blocks:
            x = plain_block(block, x, rope)
        return x

    def take_network(self, classifier: "ClassTokenViT") -> None:
        """Copy all weights of a classifier that this network has; it has no patch head."""
        own = self.state_dict()
        self.load_state_dict({k: v for k, v in classifier.state_dict().items() if k in own})

    def tokens_after(self, images: Tensor, blocks: Collection[int]) -> list[Tensor]:
        """Patch tokens [B, N, D] after some of the blocks, counted from 1, before any final norm.

        Args:
            images: [B, 3, H, W], normalised.
            blocks: after which; one may be asked for twice.
        """
        x, rope, kept = self._embed(images), self._rotary(images), {}
        for number, block in enumerate(self.blocks, 1):
            x = plain_block(block, x, rope)
            if number in blocks:
                kept[number] = x[:, self.prefix :]
        return [kept[number] for number in blocks]

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
        x, rope = self._embed(images), self._rotary(images)
        batch, classes = x.shape[0], self.num_classes
        total = torch.promote_types(images.dtype, torch.float32)
        weights = None if self.fusion is None else self.fusion(x.shape[1])
        attention = kernels.AttentionCapture(
            self.prefix, len(self.blocks), c2p_layers, p2p_layers, backend, weights
        )
        for layer, block in enumerate(self.blocks):
            x = captured_block(block, x, layer, attention, rope)
        c2p, p2p = attention.means()
        c2p = c2p[:, :, : self.num_tokens]  # registers are no class
        c2p = c2p.expand(-1, -1, classes, -1)  # one class token is that of all classes
        tokens = self._head_tokens(x)
        if self.head is None:
            grid = self.patch_grid(images)
            cam = torch.ones(batch, classes, *grid, dtype=total, device=x.device)
        else:
            cam = self._original_cam(tokens, images).to(total)
        logits = x[:, :classes].mean(-1)
        if self.config.one_token:
            logits = ranked_mean(cam, self.config.patch_decay)
        return Capture(cam, c2p.mean(0), c2p, p2p, tokens.to(total), logits.to(total))

    def positions(self, height: int, width: int) -> Tensor | None:
        """Position embedding [1, C + h*w, D] for an image of height x width pixels, if there is.

        MCTformer's rule, kept to the letter: as trained only where the token count is the trained
        one and the image is square; else the class part stays and the patch part is resized
        bicubically with `scale_factor=((h + 0.1) / h0, (w + 0.1) / w0)`. MCTformer+ leaves the
        tenth out (`split_positions`).
        """
        if self.pos_embed is None:
            return None
        h, w = height // self.patch_size, width // self.patch_size
        if h * w == self.grid**2 and height == width:
            return self.pos_embed
        class_part = self.pos_embed[:, : self.num_tokens]
        patch_part = self.pos_embed[:, self.num_tokens :]
        image = patch_part.reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        if self.config.split_positions:
            image = F.interpolate(image, (h, w), mode="bicubic", align_corners=False)
        else:
            factors = ((h + 0.1) / self.grid, (w + 0.1) / self.grid)
            image = F.interpolate(image, scale_factor=factors, mode="bicubic", align_corners=False)
        return torch.cat([class_part, image.flatten(2).transpose(1, 2)], dim=1)

    def patch_grid(self, images: Tensor) -> tuple[int, int]:
        """(h, w) of images [B, 3, H, W]."""
        return images.shape[2] // self.patch_size, images.shape[3] // self.patch_size

    def _embed(self, images: Tensor) -> Tensor:
        patches = self.patch_embed.norm(self.patch_embed.proj(images).flatten(2).transpose(1, 2))
        prefix: Tensor = self.cls_token
        positions = self.positions(images.shape[2], images.shape[3])
        if positions is not None:
            prefix = prefix + positions[:, : self.num_tokens]
            patches = patches + positions[:, self.num_tokens :]
        if self.reg_token is not None:
            prefix = torch.cat([prefix, self.reg_token], dim=1)
        prefix = prefix.expand(len(images), -1, -1)
        x: Tensor = self.norm_pre(torch.cat([prefix, patches], dim=1))
        return x

    def _rotary(self, images: Tensor) -> Tensor | None:
        """Rotary positions [N, 2 d] of the patches, as timm's network makes them."""
        if self.rope is None:
            return None
        rope: Tensor = self.rope.get_embed(shape=self.patch_grid(images))
        return rope

    def _head_tokens(self, x: Tensor) -> Tensor:
        """Patch tokens [B, N, D] as they enter the head."""
        tokens = x[:, self.prefix :]
        return tokens if self.norm is None else self.norm(tokens)

    def _original_cam(self, tokens: Tensor, images: Tensor) -> Tensor:
        """Eq. 1: the 3x3 convolution over the patch tokens."""
        assert self.head is not None
        grid = tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *self.patch_grid(images))
        cam: Tensor = self.head(grid)
        return cam


def init_from_backbone(model: ClassTokenViT, weights: dict[str, Tensor]) -> None:
    """Start a classifier from ImageNet weights under timm's key names ([M], method §1).

    Class token and the class part of the position embedding are repeated for every class; the
    patch part is resized bicubically; the classification head is dropped, and the final norm where
    the network has none. Class tokens start at random where the weights have none.

    Raises:
        WsssError: weights of another architecture.
    """
    drop = ["head.", "head_dist.", "fc_norm.", "attn_pool.", "mask_token", "dist_token"]
    drop += [] if model.norm is not None else ["norm."]
    state = {k: v for k, v in weights.items() if not k.startswith(tuple(drop))}
    own = model.state_dict()
    try:
        classes = model.num_tokens
        token = state.pop("cls_token", own["cls_token"][:, :0])
        if token.shape[1]:
            state["cls_token"] = token[:, :1].expand(-1, classes, -1)
        if model.pos_embed is not None:
            state["pos_embed"] = _positions(model, state.pop("pos_embed"))
        wanted = {k for k in own if not k.startswith(("head.", "fusion."))}
        wanted -= set() if token.shape[1] else {"cls_token"}
        if state.keys() != wanted or any(state[k].shape != own[k].shape for k in wanted):
            odd = sorted((state.keys() ^ wanted) or
                         {k for k in wanted if state[k].shape != own[k].shape})  # fmt: skip
            raise KeyError(odd[0])
    except (KeyError, RuntimeError) as error:
        raise WsssError(
            f"Expected ImageNet weights of {model.config.arch} under timm's names; they differ at "
            f"{error}.",
            _which_file(model, weights),
        ) from error
    model.load_state_dict(state, strict=False)


_SIZES = {192: "tiny", 384: "small", 768: "base"}  # width -> its name in timm's names


def _which_file(model: ClassTokenViT, weights: dict[str, Tensor]) -> str:
    """What to do about weights that do not fit; names the architecture that is of their width."""
    projection = weights.get("patch_embed.proj.weight")
    width = 0 if projection is None or not projection.ndim else len(projection)
    size = _SIZES.get(width, "")
    arch = re.sub("tiny|small|base", size, model.config.arch, count=1)
    other = arch != model.config.arch and width != model.embed_dim
    if size and other and timm.is_model(arch):
        return f"The file looks like {arch} (width {width}): give --arch {arch}."
    return "Give the file that belongs to this architecture."


def _positions(model: ClassTokenViT, found: Tensor) -> Tensor:
    """Position embedding [1, C + N, D] out of a backbone's, with or without a class part."""
    prefix = found.shape[1] - math.isqrt(found.shape[1]) ** 2  # 0 where patches only
    patch_part = resize_positions(found[:, prefix:], (model.grid, model.grid))
    class_part = found[:, :1] if prefix else torch.zeros_like(found[:, :1])
    return torch.cat([class_part.expand(-1, model.num_tokens, -1), patch_part], dim=1)
