"""Each operation alone against its PyTorch peer, on attention as a capture leaves it.

attention          attention output of all layers, and its head-and-layer means; from queries
                   and keys in tensors of their own, which a GPU's capture copies (in the
                   network it does not: `forward`)
attention_mean     the means alone, from queries, keys and log-sum-exp (Triton on a GPU)
head_mean          the means of attention that the caller has, of the last layers
related_mean       Eq. 3: choice of the related patches, and their mean
refine             Eqs. 3-6: the final stage
propagate_gather, propagate_scatter, propagate_geometric    Eq. 6 in each reading
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wsssfast import kernels
from wsssfast.bench import peers
from wsssfast.bench.cases import Case, Contender, Work, rotating
from wsssfast.bench.options import Spec
from wsssfast.bench.shapes import (
    METHOD,
    Shape,
    attention_size,
    attention_work,
    given_work,
    map_work,
    mean_work,
    shape_of,
    topk_size,
)
from wsssfast.kernels import operators, reference

_LARGE = 1 << 30  # bytes
Inputs = tuple[Any, ...]
Layers = list[tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Operation:
    """How to benchmark one operation.

    Attributes:
        inputs: a set of inputs of a shape, from torch's random state.
        ways: name -> function of the shape and one set of inputs; ratios are to the first.
        work: the least that it takes.
        needs: way -> bytes that it holds at least.
        by_precision: whether its inputs are in the network's precision; else float32.
        triton: whether only the Triton backend has it.
        graph: whether its ways are short, and kernels only.
    """

    inputs: Callable[[Shape], Inputs]
    ways: dict[str, Callable[..., object]]
    work: Callable[[Shape], Work]
    needs: dict[str, Callable[[Shape], int]]
    by_precision: bool = False
    triton: bool = False
    graph: bool = True


def build(spec: Spec, sets: int) -> Case:
    """The case of an operation."""
    operation, shape = OPERATIONS[spec.what], shape_of(spec)
    devices = [torch.cuda.current_device()] if spec.device == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(0)
        inputs = [operation.inputs(shape) for _ in range(sets)]
    work = operation.work(shape)
    contenders = []
    for name, way in operation.ways.items():
        needs = operation.needs[name](shape) if name in operation.needs else 0
        call = rotating(torch.no_grad()(partial(way, shape)), inputs)
        graph = operation.graph and needs < _LARGE  # a recording keeps what it needs
        contenders.append(Contender(name, call, needs, graph))
    return Case(spec, shape.patches, tuple(contenders), next(iter(operation.ways)), work)


def names(device: str) -> tuple[str, ...]:
    """The operations that a device has."""
    triton = kernels.backend.for_device(device) == "triton"
    return tuple(name for name, operation in OPERATIONS.items() if triton or not operation.triton)


def _projections(shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value [B, M, T, d] of one layer, laid out as the network leaves them."""
    qkv = torch.randn(
        shape.batch, shape.tokens, 3, shape.heads, shape.width,
        dtype=shape.dtype, device=shape.device,
    )  # fmt: skip
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return query, key, value


def _layers(shape: Shape) -> Inputs:
    return ([_projections(shape) for _ in range(shape.layers)],)


def _attend(shape: Shape, layers: Layers) -> object:
    capture = kernels.AttentionCapture(
        shape.classes, shape.layers, shape.c2p_layers, shape.p2p_layers
    )
    outputs = [capture.attend(layer, *parts) for layer, parts in enumerate(layers)]
    return outputs[-1], capture.means()


def _attend_plain(shape: Shape, layers: Layers) -> object:
    return [F.scaled_dot_product_attention(*parts) for parts in layers][-1]


def _attend_recompute(shape: Shape, layers: Layers) -> object:
    return _attend_plain(shape, layers), _recompute(
        shape, ((query, key) for query, key, _ in layers)
    )


def _recompute(shape: Shape, pairs: Iterable[tuple[Tensor, Tensor]]) -> object:
    sums = peers.RunningMeans(shape.classes, shape.layers, shape.c2p_layers, shape.p2p_layers)
    for query, key in pairs:
        sums.add(query, key, shape.width**-0.5)
    return sums.means()


def _attend_stacked(shape: Shape, layers: Layers) -> object:
    kept, output = [], None
    for query, key, value in layers:
        output, attention = peers.attend_by_softmax(query, key, value, shape.width**-0.5)
        kept.append(attention)
    return output, peers.stacked_means(kept, shape.classes, shape.c2p_layers, shape.p2p_layers)


def _kept(shape: Shape) -> Inputs:
    """Queries and keys [L, B, T, 2, M, d] and log-sum-exp [L, B, M, T], as a capture keeps them."""
    kept = torch.randn(
        shape.layers, shape.batch, shape.tokens, 2, shape.heads, shape.width,
        dtype=shape.dtype, device=shape.device,
    )  # fmt: skip
    scale = shape.width**-0.5
    return kept, torch.stack(
        [operators.attend_with_lse(query, key, key, scale)[1] for query, key in _pairs(kept)]
    )


def _pairs(kept: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Queries and keys [B, M, T, d] by layer."""
    for layer in kept:
        query, key = layer.permute(2, 0, 3, 1, 4).unbind(0)
        yield query, key


def mean_alone(shape: Shape, kept: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Both means of all layers in one launch."""
    given = (shape.classes, shape.c2p_layers, shape.p2p_layers, shape.width**-0.5)
    found: tuple[Tensor, Tensor] = operators.attention_mean(kept, lse, *given)
    return found


def _mean_by_recompute(shape: Shape, kept: Tensor, lse: Tensor) -> object:
    return _recompute(shape, _pairs(kept))


def _given(shape: Shape) -> Inputs:
    layers = (_projections(shape) for _ in range(shape.c2p_layers))
    return ([reference.attention_probabilities(*parts[:2]) for parts in layers],)


def _stack_and_mean(shape: Shape, kept: list[Tensor]) -> object:
    return peers.stacked_means(kept, shape.classes, len(kept), len(kept))


def _maps(shape: Shape) -> Inputs:
    """CAM and class-to-patch attention of an image's classes, and p2p, in a capture's layout."""
    capture = kernels.AttentionCapture(shape.classes, 1, 1, 1)
    capture.attend(0, *_projections(shape))
    c2p, p2p = capture.means()
    c2p = c2p[0, :, : shape.per_image].contiguous()
    return torch.randn_like(c2p), c2p, p2p


def _propagation(propagation: kernels.Propagation) -> Operation:
    def peer(shape: Shape, cam: Tensor, c2p: Tensor, p2p: Tensor) -> Tensor:
        return reference.propagate(cam, p2p, propagation)

    def ours(shape: Shape, cam: Tensor, c2p: Tensor, p2p: Tensor) -> Tensor:
        return kernels.propagate(cam, p2p, propagation)

    return Operation(
        _maps, {"matmul": peer, "wsssfast": ours},
        lambda shape: map_work(shape, 2, 2 * shape.patches), {},
    )  # fmt: skip


_PLAIN, _AGAIN = "SDPA, no attention", "recompute"
OPERATIONS = {
    "attention": Operation(
        _layers,
        {_PLAIN: _attend_plain, "wsssfast": _attend, "SDPA + recompute": _attend_recompute,
         "stacked": _attend_stacked},
        attention_work,
        {"SDPA + recompute": lambda shape: 2 * attention_size(shape),
         "stacked": lambda shape: 2 * shape.layers * attention_size(shape)},
        by_precision=True, graph=False,
    ),
    "attention_mean": Operation(
        _kept, {_AGAIN: _mean_by_recompute, "wsssfast": mean_alone}, mean_work,
        {_AGAIN: lambda shape: 2 * attention_size(shape)},
        by_precision=True, triton=True,
    ),
    "head_mean": Operation(
        _given,
        {"stack, mean": _stack_and_mean,
         "wsssfast": lambda shape, kept: kernels.head_mean(kept, shape.classes)},
        given_work,
        {"stack, mean": lambda shape: shape.c2p_layers * attention_size(shape)},
        by_precision=True,
    ),
    "related_mean": Operation(
        _maps,
        {"top-k, gather": lambda shape, cam, c2p, p2p: peers.topk_gather_mean(
            c2p, p2p, shape.related),
         "wsssfast": lambda shape, cam, c2p, p2p: kernels.related_mean(c2p, p2p, METHOD.ratio),
         "reference": lambda shape, cam, c2p, p2p: reference.related_mean(
             c2p, reference.related_patches(p2p, shape.related))},
        lambda shape: map_work(shape, 2, shape.related),
        {"top-k, gather": topk_size},
    ),
    "refine": Operation(
        _maps,
        {"top-k, gather": lambda shape, cam, c2p, p2p: peers.refine_by_topk(
            cam, c2p, p2p, METHOD.ratio, METHOD.alpha),
         "wsssfast": lambda shape, cam, c2p, p2p: kernels.refine(
             cam, c2p, p2p, ratio=METHOD.ratio, alpha=METHOD.alpha)["final"],
         "reference": lambda shape, cam, c2p, p2p: peers.refine_by_reference(
             cam, c2p, p2p, METHOD.ratio, METHOD.alpha)},
        lambda shape: map_work(shape, 3, shape.related + 3 + 2 * shape.patches),
        {"top-k, gather": topk_size},
    ),
    "propagate_gather": _propagation("gather"),
    "propagate_scatter": _propagation("scatter"),
    "propagate_geometric": _propagation("geometric"),
}  # fmt: skip
