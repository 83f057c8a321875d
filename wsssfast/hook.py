"""The attention of any plain ViT of timm while it runs, for notebooks and other networks' heads."""

from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from wsssfast import kernels
from wsssfast.errors import WsssError
from wsssfast.models.backbone import why_not_plain
from wsssfast.models.block import captured_attention


class Attention(NamedTuple):
    """Means over heads and layers.

    Attributes:
        c2p: [B, K, N] attention of the class token to the patches, without the rows of registers;
            K is 1, or 0 where c2p_layers is 0.
        p2p: [B, N, N] attention between patches, rows attend to columns.
    """

    c2p: Tensor
    p2p: Tensor


class AttentionHook:
    """Captures the attention of a forward pass without holding it.

    While the hook is on, the network computes what it always computes, layer by layer through
    `kernels.AttentionCapture`. For evaluation: what runs is without gradients. ::

        with AttentionHook(vit) as hook:
            features = vit.forward_features(images)
        c2p, p2p = hook.attention()
    """

    def __init__(
        self,
        vit: Any,
        c2p_layers: int = 3,
        p2p_layers: int = 12,
        backend: kernels.Backend = "auto",
    ) -> None:
        """Prepare for a network.

        Args:
            vit: timm's VisionTransformer or Eva with plain attention.
            c2p_layers: last layers that c2p averages; 0 leaves it out, as networks without a class
                token need.
            p2p_layers: last layers that p2p averages.
            backend: of `kernels`.

        Raises:
            WsssError: a network of another kind, or c2p of one without a class token.
        """
        reason = why_not_plain(vit)
        if reason:
            raise WsssError(f"Expected a plain ViT of timm, found one with {reason}.")
        if c2p_layers and vit.cls_token is None:
            raise WsssError(
                "Expected a network with a class token, found one without.",
                "Give c2p_layers=0 for the attention between patches alone.",
            )
        self.vit = vit
        self._rows = 1 if c2p_layers else 0  # the class token is the first, registers follow
        layers = (max(c2p_layers, 1), p2p_layers)
        self._options = (vit.num_prefix_tokens, len(vit.blocks), *layers, backend)
        self._capture: kernels.AttentionCapture | None = None

    def __enter__(self) -> Self:
        """Put the hook on."""
        for layer, block in enumerate(self.vit.blocks):
            block.attn.forward = partial(self._attend, block.attn, layer)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take it off."""
        for block in self.vit.blocks:
            del block.attn.forward  # the class's own is back

    def attention(self) -> Attention:
        """What the last forward pass left; once a pass.

        Raises:
            WsssError: there was none.
        """
        if self._capture is None:
            raise WsssError(
                "Expected a forward pass under the hook, found none.",
                "Run the network inside the `with` block, then ask once.",
            )
        c2p, p2p = self._capture.means()
        self._capture = None
        return Attention(c2p[:, :, : self._rows].mean(0), p2p)

    def _attend(
        self,
        attn: Any,
        layer: int,
        x: Tensor,
        rope: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Stands in for the forward of timm's attention."""
        if attn_mask is not None or is_causal:
            raise WsssError("Expected attention over all tokens, found a mask.")
        if layer == 0:
            self._capture = kernels.AttentionCapture(*self._options)
        with torch.no_grad():
            if self._capture is None or not self._capture.wants(layer):
                plain: Tensor = type(attn).forward(attn, x, *(() if rope is None else (rope,)))
                return plain
            return captured_attention(attn, x, layer, self._capture, rope)
