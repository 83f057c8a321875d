"""The attention of any plain ViT of timm while it runs, for notebooks and other networks' heads."""

from functools import partial
from numbers import Integral
from types import TracebackType
from typing import Any, NamedTuple, Self, get_args

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from wsssfast import kernels
from wsssfast.errors import WsssError
from wsssfast.models.backbone import why_not_captured
from wsssfast.models.block import captured_attention

_BACKENDS = get_args(kernels.Backend)
_OTHERWISE = "Call kernels.AttentionCapture in the forward of another network."


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
    `kernels.AttentionCapture`. For evaluation: gradients are off inside the `with` block, and what
    the network returns there has none. ::

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
            vit: timm's VisionTransformer or Eva, or of a class derived from one, with timm's blocks
                and plain attention. All tokens after the first `vit.num_prefix_tokens` are patches.
            c2p_layers: last layers that c2p averages; 0 leaves it out, as networks without a class
                token need.
            p2p_layers: last layers that p2p averages.
            backend: auto, triton, eager or reference.

        Raises:
            WsssError: a network of another kind, c2p of one without a class token or with several,
                no such number of layers, or no such backend.
        """
        for name, number, least in (("c2p_layers", c2p_layers, 0), ("p2p_layers", p2p_layers, 1)):
            if not isinstance(number, Integral) or number < least:
                raise WsssError(
                    f"Expected {name} as a whole number from {least} up, found {number!r}."
                )
        if backend not in _BACKENDS:
            raise WsssError(f"Expected backend {', '.join(_BACKENDS)}, found {backend!r}.")
        _require_plain(vit)
        rows = 0 if vit.cls_token is None else vit.cls_token.shape[1]
        if c2p_layers and not rows:
            raise WsssError(
                "Expected a network with a class token, found one without.",
                "Give c2p_layers=0 for the attention between patches alone.",
            )
        if rows > 1:
            raise WsssError(f"Expected one class token at most, found {rows}.", _OTHERWISE)
        self.vit = vit
        self._rows = 1 if c2p_layers else 0  # the class token is the first, registers follow
        self._depth = len(vit.blocks)
        layers = (max(c2p_layers, 1), p2p_layers)
        self._options = (vit.num_prefix_tokens, self._depth, *layers, backend)
        self._capture: kernels.AttentionCapture | None = None
        self._ran = 0  # layers of the last forward pass
        self._tokens = torch.Size()  # [B, T, D] of its first layer
        self._no_grad = torch.no_grad()

    def __enter__(self) -> Self:
        """Put the hook on.

        Raises:
            WsssError: another one is.
        """
        attentions = [block.attn for block in self.vit.blocks]
        if any("forward" in vars(attn) for attn in attentions):
            raise WsssError(
                "Expected a network without a hook, found one that has another on.",
                "Leave the other hook's `with` block first.",
            )
        for layer, attn in enumerate(attentions):
            attn.forward = partial(self._attend, attn, layer)
        self._no_grad.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take it off."""
        self._no_grad.__exit__(kind, error, trace)
        for block in self.vit.blocks:
            del block.attn.forward  # the class's own is back

    def attention(self) -> Attention:
        """What the last forward pass left; once a pass.

        Raises:
            WsssError: there was none, or it stopped before the last layer.
        """
        if self._capture is None:
            raise WsssError(
                "Expected a forward pass under the hook, found none.",
                "Run the network inside the `with` block, then ask once.",
            )
        if self._ran < self._depth:
            raise WsssError(
                f"Expected a forward pass through all {self._depth} layers, found one through the "
                f"first {self._ran}.",
                "Run it to the end, without stop_early.",
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
        _require_evaluation(attn)
        if layer == 0:
            self._capture = kernels.AttentionCapture(*self._options)
            self._ran, self._tokens = 0, x.shape
        self._require_next(layer, x)
        self._ran = layer + 1
        assert self._capture is not None
        if not self._capture.wants(layer):
            plain: Tensor = type(attn).forward(attn, x, *(() if rope is None else (rope,)))
            return plain
        return captured_attention(attn, x, layer, self._capture, rope)

    def _require_next(self, layer: int, x: Tensor) -> None:
        """Refuse layers left out or taken twice, and tokens that come or go between them."""
        if layer != self._ran:
            raise WsssError(
                f"Expected a forward pass through all {self._depth} layers in order, found layer "
                f"{layer + 1} after the first {self._ran}."
            )
        if x.shape != self._tokens:
            raise WsssError(
                f"Expected the same tokens in all layers, found {list(x.shape)} in layer "
                f"{layer + 1} after {list(self._tokens)}."
            )


def _require_plain(vit: Any) -> None:
    """Refuse networks whose attention is not what `captured_attention` computes."""
    if not isinstance(vit, VisionTransformer | Eva):
        inner = [name for name in ("module", "_orig_mod") if _is_module(vit, name)]
        raise WsssError(
            "Expected timm's VisionTransformer or Eva, or a class derived from one, found "
            f"{type(vit).__name__}.",
            f"Hook the bare network inside it, its .{inner[0]}." if inner else _OTHERWISE,
        )
    reason = why_not_captured(vit)
    if reason:
        raise WsssError(f"Expected a plain ViT of timm, found one with {reason}.", _OTHERWISE)


def _is_module(vit: Any, name: str) -> bool:
    return isinstance(getattr(vit, name, None), nn.Module)


def _require_evaluation(attn: Any) -> None:
    """Refuse what the capture leaves out: gradients, and dropout in attention."""
    if torch.is_grad_enabled():
        raise WsssError(
            "Expected a forward pass without gradients, found them on again inside the hook.",
            "Put it under torch.no_grad().",
        )
    if any(
        drop.p and (drop.training or attn.training) for drop in (attn.attn_drop, attn.proj_drop)
    ):
        raise WsssError(
            "Expected a network in evaluation mode, found dropout in its attention.",
            "Call its .eval().",
        )
