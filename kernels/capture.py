"""The attention of a forward pass, averaged over heads and layers while it runs (Eq. 2)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wsssfast.kernels import eager, operators, reference
from wsssfast.kernels.backend import Backend, choose


class AttentionCapture:
    """Computes a network's attention, layer after layer, and keeps what the refinement needs.

    `eager` averages block by block while it attends. `triton` lets PyTorch's own kernel attend,
    keeps queries, keys and log-sum-exp, and averages all layers in one launch at the end. Neither
    holds attention of [M, T, T] or has gradients; `reference` has them.
    """

    def __init__(
        self,
        classes: int,
        depth: int,
        c2p_layers: int = 3,
        p2p_layers: int = 12,
        backend: Backend = "auto",
        weights: Tensor | None = None,
    ) -> None:
        """Prepare for one forward pass.

        Args:
            classes: C >= 0 leading class tokens.
            depth: layers of the network.
            c2p_layers: last layers to keep class-to-patch attention of; all where there are fewer.
            p2p_layers: last layers that the patch-to-patch attention averages; likewise.
            backend: auto, triton, eager or reference.
            weights: [L, M], finite and >= 0, factors on the attention of each layer's heads in both
                means, whose divisors stay as they are; ones where None.

        Raises:
            ValueError: C < 0, no layer in a range, weights of other layers, or of other values
                where these are on the CPU: elsewhere the look at them would wait for the device.
        """
        _expect_classes(classes)
        if min(depth, c2p_layers, p2p_layers) < 1:
            raise ValueError(
                f"expected at least one layer, received depth {depth}, c2p_layers {c2p_layers}, "
                f"p2p_layers {p2p_layers}"
            )
        if weights is not None:
            _expect_weights(weights, depth)
        self.classes, self.depth, self.backend, self.weights = classes, depth, backend, weights
        self.c2p_layers, self.p2p_layers = min(c2p_layers, depth), min(p2p_layers, depth)
        self._first = self._next = depth - max(self.c2p_layers, self.p2p_layers)
        self._means: tuple[Tensor, Tensor] | None = None
        self._kept: Tensor | None = None  # [L, B, T, 2, M, d]
        self._views: dict[int, tuple[Tensor, Tensor]] = {}
        self._lse: list[Tensor] = []
        self._c2p: Tensor | None = None
        self._total: Tensor | None = None
        self._block: Tensor | None = None
        self._scale = 0.0

    def wants(self, layer: int) -> bool:
        """Whether a layer, counted from 0, enters either mean; others need not come here."""
        return layer >= self._first

    def project(
        self, layer: int, tokens: Tensor, weight: Tensor, bias: Tensor | None, heads: int
    ) -> tuple[Tensor, Tensor] | None:
        """Queries and keys of a layer, written where they are kept; None where they are not.

        Args:
            layer: counted from 0, one that `wants` named.
            tokens: [B, T, D].
            weight: [2 * D, D], that of queries before that of keys.
            bias: [2 * D] or None.
            heads: M.

        Returns:
            Query and key [B, M, T, d], views of what is kept, in autocast's precision.

        Raises:
            ValueError: a layer out of order.
        """
        self._expect_turn(layer)
        batch, count, width = tokens.shape
        if choose(self.backend, tokens, width=width // heads) != "triton":
            return None
        kind = tokens.device.type
        cast = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if cast else tokens.dtype
        place = self._place(layer, tokens.new_empty(0, dtype=dtype), (batch, count, heads, width))
        operators.project_into(tokens, weight, bias, place)
        query, key = place.permute(2, 0, 3, 1, 4).unbind(0)
        self._views[layer] = query, key
        return query, key

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None = None
    ) -> Tensor:
        """Attention output of a layer; those that `wants` names come once each, in order.

        Args:
            layer: counted from 0; an earlier one enters no mean.
            query: [B, M, T, d], T = C + N.
            key: like `query`.
            value: like `query`.
            scale: factor on the scores, 1/sqrt(d) where None; the same for all layers.

        Returns:
            [B, M, T, d].

        Raises:
            ValueError: shapes that do not fit one another, a layer out of order, or gradients asked
                of another backend than the reference.
        """
        if query.ndim != 4 or query.shape != key.shape or query.shape != value.shape:
            raise ValueError(
                "attend expects query, key and value of one shape [B, M, T, d]; received "
                f"{list(query.shape)}, {list(key.shape)}, {list(value.shape)}"
            )
        if query.shape[2] <= self.classes:
            raise ValueError(
                f"expected more than {self.classes} tokens (classes), received {query.shape[2]}"
            )
        if 0 <= layer < self._first:
            return F.scaled_dot_product_attention(query, key, value, scale=scale)
        self._expect_turn(layer)
        self._scale = query.shape[-1] ** -0.5 if scale is None else scale
        chosen = choose(self.backend, query, width=query.shape[-1])
        asked = any(part.requires_grad for part in (query, key, value))
        if asked and chosen != "reference" and torch.is_grad_enabled():
            raise ValueError(
                "attend expects tensors without gradients, as under torch.no_grad(), received some "
                "that require them; backend 'reference' is differentiable"
            )
        self._next = layer + 1
        if chosen == "triton":
            return self._keep(layer, query, key, value)
        return self._accumulate(layer, query, key, value, chosen == "reference")

    def means(self) -> tuple[Tensor, Tensor]:
        """Class-to-patch attention by layer [K, B, C, N] and patch-to-patch [B, N, N]; float32.

        The K = c2p_layers layers come first to last; float64 where the queries were.

        Raises:
            ValueError: not all layers came.
        """
        if self._next < self.depth:
            raise ValueError(
                f"expected all layers from {self._first} to {self.depth - 1} before their means, "
                f"layer {self._next} did not come"
            )
        if self._means is None:
            self._means = self._averaged()
        return self._means

    def _averaged(self) -> tuple[Tensor, Tensor]:
        if self._kept is not None:
            kept, lse = self._kept, torch.stack(self._lse)
            self._kept = None
            self._lse.clear()
            given = (self.classes, self.c2p_layers, self.p2p_layers, self._scale)
            c2p, p2p = operators.attention_mean(kept, lse, *given)
            return c2p, p2p
        assert self._c2p is not None and self._total is not None
        return self._c2p, self._total[:, self.classes :, self.classes :]

    def _expect_turn(self, layer: int) -> None:
        if layer != self._next or layer == self.depth:
            wanted = f"layer {self._next} next" if self._next < self.depth else "no more layers"
            raise ValueError(
                f"expected {wanted}, layers {self._first} to {self.depth - 1} come once each in "
                f"order; received layer {layer}"
            )

    def _place(self, layer: int, like: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
        """Where a layer's queries and keys are kept, [B, T, 2, M, d]."""
        batch, tokens, heads, width = shape
        layers = max(self.c2p_layers, self.p2p_layers)
        if self._kept is None:
            self._kept = like.new_empty(layers, batch, tokens, 2, heads, width // heads)
        return self._kept[layer - self.depth + layers]

    def _keep(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        views = self._views.pop(layer, None)
        if views is None or views[0] is not query or views[1] is not key:
            batch, heads, tokens, width = query.shape
            place = self._place(layer, query, (batch, tokens, heads, heads * width))
            place.copy_(torch.stack([query, key], 2).permute(0, 3, 2, 1, 4))
        output: Tensor
        output, lse = operators.attend_with_lse(query, key, value, self._scale)
        if self.weights is not None:  # exp(scores - lse) becomes as many times as large
            lse = lse - self.weights[layer].to(lse.dtype).log()[:, None]
        self._lse.append(lse)
        return output

    def _accumulate(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, plain: bool
    ) -> Tensor:
        batch, _, tokens, _ = query.shape
        left = self.depth - layer
        if self._c2p is None or self._total is None:
            work = torch.promote_types(query.dtype, torch.float32)
            patches = tokens - self.classes
            shape = (self.c2p_layers, batch, self.classes, patches)
            self._c2p = query.new_zeros(shape, dtype=work)
            self._total = query.new_zeros(batch, tokens, tokens, dtype=work)
        c2p = self._c2p[self.c2p_layers - left] if left <= self.c2p_layers else None
        total = self._total if left <= self.p2p_layers else None
        share = 1 / self.p2p_layers
        weights = None if self.weights is None else self.weights[layer].to(self._total.dtype)
        if not plain:
            given = (query, key, value, self._scale, self.classes, share, total, c2p, weights)
            if torch.compiler.is_compiling():
                compiled: Tensor = operators.attend_and_add(*given)
                return compiled
            if self._block is None:
                self._block = eager.attention_block(query)
            return eager.attend_and_add(*given, block=self._block)
        attention = reference.attention_probabilities(query, key, self._scale)
        weighted = attention if weights is None else attention * weights[:, None, None]
        mean = weighted.mean(1)
        if c2p is not None:
            c2p += mean[:, : self.classes, self.classes :]
        if total is not None:
            total += share * mean
        return attention @ value


def head_mean(
    probabilities: Sequence[Tensor], classes: int, *, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """The same means from attention that the caller has already.

    Args:
        probabilities: per layer [B, M, T, T], of one shape and dtype.
        classes: C >= 0 leading class tokens.
        backend: auto, triton, eager or reference.

    Returns:
        Class-to-patch attention by layer [L, B, C, N], and the mean over all of them of the
        patch-to-patch attention [B, N, N].

    Raises:
        ValueError: no layers, one tensor in their place, C < 0, or shapes that do not fit one
            another.
    """
    _expect_classes(classes)
    if isinstance(probabilities, Tensor):
        raise ValueError(
            "expected a list of layers [B, M, T, T], received one tensor "
            f"{list(probabilities.shape)}"
        )
    first = probabilities[0] if probabilities else torch.empty(0)
    if first.ndim != 4 or any(layer.shape != first.shape for layer in probabilities):
        shapes = [list(layer.shape) for layer in probabilities]
        raise ValueError(f"expected layers of one shape [B, M, T, T], received {shapes}")
    if first.shape[2] != first.shape[3] or first.shape[2] <= classes:
        raise ValueError(
            f"expected more than {classes} tokens (classes), received {list(first.shape)}"
        )
    chosen = choose(backend, first)
    if chosen == "triton":
        from wsssfast.kernels.given_mean import given_mean

        return given_mean(probabilities, classes)
    if chosen == "eager":
        return eager.head_mean(probabilities, classes)
    means = [layer.mean(1) for layer in probabilities]
    c2p = torch.stack([mean[:, :classes, classes:] for mean in means])
    return c2p, torch.stack(means).mean(0)[:, classes:, classes:]


def _expect_classes(classes: int) -> None:
    if classes < 0:
        raise ValueError(f"expected classes >= 0, received {classes}")


def _expect_weights(weights: Tensor, depth: int) -> None:
    if weights.ndim != 2 or len(weights) != depth:
        raise ValueError(
            f"expected weights of {depth} layers [L, M], received {list(weights.shape)}"
        )
    seen = weights.is_cpu and not torch.compiler.is_compiling()
    if seen and not bool(((weights >= 0) & (weights < torch.inf)).all()):
        raise ValueError("expected weights that are finite and >= 0, received others")
