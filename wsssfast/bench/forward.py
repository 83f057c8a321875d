"""The export forward against the same network without attention maps and with the peers'."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from wsssfast import kernels
from wsssfast.bench import peers
from wsssfast.bench.cases import Case, Contender, Work, rotating
from wsssfast.bench.options import Spec
from wsssfast.bench.shapes import METHOD, Shape, attention_size, config_of, shape_of
from wsssfast.models.classifier import ClassTokenViT
from wsssfast.models.classifier_config import ClassifierConfig
from wsssfast.precision import autocast

Way = Callable[[Tensor, Tensor], object]
PLAIN = "SDPA, no attention"


def build(spec: Spec, sets: int) -> Case:
    """The forward of a random network on random images, refined for some classes of each."""
    shape = shape_of(spec)
    model = _model(spec.arch, spec.classes, spec.device)
    random = torch.Generator(spec.device).manual_seed(0)
    inputs = []
    for _ in range(sets):
        images = torch.empty(spec.batch, 3, *spec.size, device=spec.device)
        ranks = torch.empty(spec.batch, spec.classes, device=spec.device).uniform_(generator=random)
        inputs.append((images.normal_(generator=random), ranks.topk(spec.per_image).indices))
    if spec.compiled:
        torch.compiler.reset()  # else the graphs of other sizes count against its limit
    contenders = []
    for name, way in WAYS.items():
        bound = partial(way, model)
        needs = _NEEDS[name](shape) if name in _NEEDS else 0
        contenders.append(_contender(name, bound, spec, inputs, needs))
        if spec.compiled and name in _COMPILED:
            compiled = torch.compile(bound, dynamic=False)
            contenders.append(_contender(f"{name}, compiled", compiled, spec, inputs, needs))
    work = Work(0, spec.batch * plain_flops(spec.arch, spec.classes, spec.size))
    return Case(spec, shape.patches, tuple(contenders), PLAIN, work)


@torch.no_grad()
def export_forward(model: ClassTokenViT, images: Tensor, chosen: Tensor) -> Tensor:
    """What `wsssfast.compute` does for a batch: the final stage of the chosen classes, [B, K, N].

    Args:
        model: in evaluation mode.
        images: [B, 3, H, W], normalised.
        chosen: int64 [B, K], indices of classes.
    """
    captured = model.capture(images, METHOD.c2p_layers, METHOD.p2p_layers).of_classes(chosen)
    cam = captured.cam.flatten(2)
    found = kernels.refine(cam, captured.c2p, captured.p2p, ratio=METHOD.ratio, alpha=METHOD.alpha)
    return found["final"]


def random_model(config: ClassifierConfig) -> ClassTokenViT:
    """A network of random weights, always the same, with attention neither uniform nor one-hot."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ClassTokenViT(config)
        for block in model.blocks:  # queries and keys of unit variance, and so their scores
            attention: Any = block.attn
            torch.nn.init.normal_(attention.qkv.weight, std=model.embed_dim**-0.5)
    return model.eval()


@lru_cache(maxsize=1)
def _model(arch: str, classes: int, device: str) -> ClassTokenViT:
    return random_model(config_of(arch, classes)).to(device)


@lru_cache(maxsize=64)
def plain_flops(arch: str, classes: int, size: tuple[int, int]) -> int:
    """Multiplications and additions of the plain forward of one image, counted by PyTorch."""
    with torch.device("meta"):
        model = ClassTokenViT(config_of(arch, classes)).eval()
        images = torch.empty(1, 3, *size)
    with FlopCounterMode(display=False) as counter:
        peers.plain_forward(model, images)
    return int(counter.get_total_flops())


def _contender(
    name: str, way: Way, spec: Spec, inputs: list[tuple[Tensor, Tensor]], needs: int
) -> Contender:
    def run(images: Tensor, chosen: Tensor) -> object:
        with autocast(spec.device, spec.precision):
            return way(images, chosen)

    return Contender(name, rotating(run, inputs), needs)


def _plain(model: ClassTokenViT, images: Tensor, chosen: Tensor) -> Tensor:
    return peers.plain_forward(model, images)


@torch.no_grad()
def _capture(model: ClassTokenViT, images: Tensor, chosen: Tensor) -> object:
    return model.capture(images, METHOD.c2p_layers, METHOD.p2p_layers)


def _recompute(model: ClassTokenViT, images: Tensor, chosen: Tensor) -> Tensor:
    maps = peers.recompute_forward(model, images, METHOD.c2p_layers, METHOD.p2p_layers)
    return _refined(maps, chosen)


def _stacked(model: ClassTokenViT, images: Tensor, chosen: Tensor) -> Tensor:
    maps = peers.stacked_forward(model, images, METHOD.c2p_layers, METHOD.p2p_layers)
    return _refined(maps, chosen)


@torch.no_grad()
def _refined(maps: peers.Maps, chosen: Tensor) -> Tensor:
    index = chosen[:, :, None].expand(-1, -1, maps.p2p.shape[-1])
    cam, c2p = maps.cam.flatten(2).gather(1, index), maps.c2p.gather(1, index)
    return peers.refine_by_topk(cam, c2p, maps.p2p, METHOD.ratio, METHOD.alpha)


_AGAIN, _STACKED = "SDPA + recompute, top-k", "attention stacked, top-k"
WAYS: dict[str, Callable[[ClassTokenViT, Tensor, Tensor], object]] = {
    PLAIN: _plain,
    "wsssfast": export_forward,
    "wsssfast, capture only": _capture,
    _AGAIN: _recompute,
    _STACKED: _stacked,
}
_COMPILED = (PLAIN, _STACKED)
_NEEDS: dict[str, Callable[[Shape], int]] = {
    _AGAIN: lambda shape: 2 * attention_size(shape),
    _STACKED: lambda shape: 2 * shape.layers * attention_size(shape),
}
