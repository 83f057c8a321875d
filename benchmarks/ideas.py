"""Training-free ideas for the refinement, in plain PyTorch; `training_free.py` scores them.

Each group changes one thing of the method and leaves the rest as `CamOptions` has it. Those that
prove themselves become options of the package; the others stay here, for whoever thinks of them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsssfast.kernels import reference, token_similarity
from wsssfast.models.block import attending_block
from wsssfast.models.classifier import ClassTokenViT

ESTIMATED = 0.3  # the threshold that a background estimated per image is brought to
RATIOS = (0.1, 0.3, 0.5)
ALPHA = 1.2
C2P_LAYERS = 3
BASE, PAPER = "baseline", "paper"


@dataclass(frozen=True)
class Seen:
    """What a network shows of an image and its mirror image.

    Attributes:
        cam: [2, K, N] relu of Original-CAM, of the image's classes.
        c2p: [L, 2, M, K, N] class-to-patch attention.
        p2p: [L, 2, M, N, N] patch-to-patch attention.
        tokens: [2, N, D] patch tokens as they enter the head.
        grid: (h, w).
    """

    cam: Tensor
    c2p: Tensor
    p2p: Tensor
    tokens: Tensor
    grid: tuple[int, int]

    @cached_property
    def attention(self) -> Tensor:
        """[2, N, N], the mean over layers and heads."""
        return self.p2p.mean((0, 2))

    @cached_property
    def last(self) -> Tensor:
        """[2, K, N], the mean over heads of the last layers."""
        return self.c2p[-C2P_LAYERS:].mean((0, 2))

    @cached_property
    def similarity(self) -> Tensor:
        """[2, N, N], cosine of tokens."""
        return token_similarity(self.tokens)

    @cached_property
    def geometric(self) -> Tensor:
        """[2, N, N], geometric mean of attention both ways."""
        return (self.attention * self.attention.mT).sqrt()

    @cached_property
    def balanced(self) -> Tensor:
        """[2, N, N], attention whose rows and columns sum to about 1: no patch is a hub."""
        return balanced(self.attention)

    @cached_property
    def both(self) -> Tensor:
        """[2, K, N], CAM by attention: what the baseline propagates."""
        return self.cam * self.last


@torch.inference_mode()
def see(model: ClassTokenViT, images: Tensor, labels: tuple[int, ...]) -> Seen:
    """All attention of a forward pass over [2, 3, H, W]."""
    x, rope, maps = model._embed(images), model._rotary(images), []
    for block in model.blocks:
        x, probabilities = attending_block(block, x, rope)
        maps.append(probabilities)
    attention, chosen = torch.stack(maps), list(labels)
    tokens = model._head_tokens(x)
    cam = torch.relu(model._original_cam(tokens, images))[:, chosen].flatten(2)
    return Seen(
        cam,
        attention[..., : model.num_tokens, model.prefix :][..., chosen, :],
        attention[..., model.prefix :, model.prefix :],
        tokens,
        model.patch_grid(images),
    )


def spread(maps: Tensor, weights: Tensor) -> Tensor:
    """Gathered propagation of [2, K, N] with weights [2, N, N]."""
    return maps @ weights.mT


def by_row(weights: Tensor) -> Tensor:
    """Rows that sum to 1."""
    return weights / weights.sum(-1, keepdim=True).clamp_min(1e-12)


def by_column(weights: Tensor) -> Tensor:
    """Columns that sum to 1."""
    return weights / weights.sum(-2, keepdim=True).clamp_min(1e-12)


def balanced(weights: Tensor, rounds: int = 3) -> Tensor:
    """Rows and columns that sum to about 1, by turns (Sinkhorn)."""
    for _ in range(rounds):
        weights = by_column(by_row(weights))
    return weights


def ordered(similarity: Tensor) -> Tensor:
    """int64 [2, N, N], the most related patch of each row first, ranked as `related_patches`."""
    return torch.sort(similarity, dim=-1, descending=True, stable=True).indices


def modulated(c2p: Tensor, order: Tensor, ratio: float, alpha: float = ALPHA) -> Tensor:
    """Eqs. 3 and 4 of an order of patches, which serves any number of ratios."""
    chosen = order[..., : reference.related_count(ratio, order.shape[-1])]
    related = torch.zeros(order.shape, dtype=torch.bool).scatter(-1, chosen, True)
    return reference.modulate(c2p, reference.related_mean(c2p, related), alpha)


def above(c2p: Tensor, similarity: Tensor, least: Tensor) -> Tensor:
    """Eqs. 3 and 4 with as many related patches as are more similar than `least`."""
    return reference.modulate(c2p, reference.related_mean(c2p, similarity > least), ALPHA)


def of_mass(c2p: Tensor, attention: Tensor, mass: float) -> Tensor:
    """Eqs. 3 and 4 with the fewest patches that hold a share of each patch's attention."""
    ranked, order = by_row(attention).sort(-1, descending=True)
    kept = (ranked.cumsum(-1) - ranked) < mass
    related = torch.zeros_like(kept).scatter(-1, order, kept)
    return reference.modulate(c2p, reference.related_mean(c2p, related), ALPHA)


def propagations(seen: Seen) -> Iterator[tuple[str, Tensor]]:
    """What maps are propagated with."""
    p2p, geometric = seen.attention, seen.geometric
    similar = seen.similarity.clamp_min(0)
    layers = seen.p2p.mean(2)
    largest = seen.p2p.amax(2).mean(0)
    yield "scatter", p2p.mT
    yield "arithmetic mean of both ways", (p2p + p2p.mT) / 2
    yield "geometric mean of both ways", geometric
    yield "smaller of both ways", torch.minimum(p2p, p2p.mT)
    yield "rows to 1", by_row(p2p)
    yield "geometric, rows to 1", by_row(geometric)
    yield "columns to 1", by_column(p2p)
    for rounds in (1, 3, 10):
        yield f"balanced in {rounds}", balanced(p2p, rounds)
    yield "balanced, power 2", seen.balanced**2
    yield "balanced, geometric mean of both ways", (seen.balanced * seen.balanced.mT).sqrt()
    yield "balanced by token similarity", seen.balanced * similar
    yield "balanced layer by layer", balanced(layers).mean(0)
    yield "twice balanced", seen.balanced @ seen.balanced
    for power in (0.5, 1.5, 2.0):
        yield f"power {power:g}", p2p**power
        yield f"geometric, power {power:g}", geometric**power
    yield "largest of heads", largest
    yield "largest of heads, geometric", (largest * largest.mT).sqrt()
    yield "geometric mean of layers", layers.clamp_min(1e-9).log().mean(0).exp()
    for name, part in (("first 6", layers[:6]), ("middle 6", layers[3:9]), ("last 6", layers[-6:]),
                       ("last 3", layers[-3:])):  # fmt: skip
        yield f"{name} layers", part.mean(0)
    yield "token similarity", similar
    for power in (2.0, 8.0):
        yield f"token similarity, power {power:g}", similar**power
    yield "attention by token similarity", p2p * similar
    yield "geometric by token similarity", geometric * similar
    yield "twice", p2p @ p2p
    yield "twice geometric", geometric @ geometric
    step = 0.5 * by_row(geometric)
    eye = torch.eye(step.shape[-1], dtype=step.dtype)
    yield "walk with restart", torch.linalg.inv(eye - step)


def class_attentions(seen: Seen) -> Iterator[tuple[str, Tensor]]:
    """Which layers and heads make the class-to-patch attention."""
    heads = seen.c2p.mean(2)
    for layers in (1, 2, 4, 5, 6, 8, 12):
        yield f"last {layers} layers", heads[-layers:].mean(0)
    rising = torch.arange(1.0, len(heads) + 1) ** 3
    yield "layers by their cube", torch.einsum("l,lbkn->bkn", rising, heads)
    last = seen.c2p[-C2P_LAYERS:]
    yield "largest of heads", last.amax(2).mean(0)
    entropy = -(by_row(last) * by_row(last).clamp_min(1e-12).log()).sum(-1, keepdim=True)
    yield "heads by sharpness", (last * torch.softmax(-entropy, 2)).sum(2).mean(0)
    yield "geometric mean of layers", heads[-C2P_LAYERS:].clamp_min(1e-12).log().mean(0).exp()
    others = heads[-C2P_LAYERS:].mean(0)
    yield "less the mean of the classes", torch.relu(others - 0.5 * others.mean(1, keepdim=True))


def modulations(seen: Seen) -> Iterator[tuple[str, Tensor]]:
    """What modulates: the class-to-patch attention after Eq. 4."""
    c2p, p2p, similarity = seen.last, seen.attention, seen.similarity
    ranks = {"attention": p2p, "tokens": similarity, "geometric": seen.geometric,
             "attention, columns to 1": by_column(p2p), "balanced": seen.balanced,
             "balanced by tokens": seen.balanced * similarity.clamp_min(0)}  # fmt: skip
    orders = {name: ordered(rank) for name, rank in ranks.items()}
    for name, order in orders.items():
        for ratio in RATIOS:
            yield f"{name}, ratio {ratio:g}", modulated(c2p, order, ratio)
    order = orders["tokens"]
    for alpha in (0.4, 3.0, 1e6):
        yield f"tokens, ratio 0.1, alpha {alpha:g}", modulated(c2p, order, 0.1, alpha)
    for mass in (0.3, 0.7):
        yield f"attention, mass {mass:g}", of_mass(c2p, p2p, mass)
    yield "attention, above its mean", above(c2p, p2p, p2p.mean(-1, keepdim=True))
    for least in (0.3, 0.6):
        yield f"tokens, above {least:g}", above(c2p, similarity, torch.tensor(least))
    yield "tokens, above its mean", above(c2p, similarity, similarity.mean(-1, keepdim=True))
    for ratio in (0.1, 0.3):
        again = modulated(modulated(c2p, order, ratio), order, ratio)
        yield f"tokens, ratio {ratio:g}, twice", again
    coupled = modulated(seen.both, order, 0.1) / seen.cam.clamp_min(1e-6)
    yield "tokens, ratio 0.1, of the coupled map", coupled


def couplings(seen: Seen) -> Iterator[tuple[str, Tensor]]:
    """How CAM and attention make one map, before propagation."""
    yield "root (MCTformer+)", seen.both.sqrt()
    yield "root of the CAM", seen.cam.sqrt() * seen.last
    yield "root of the attention", seen.cam * seen.last.sqrt()
    scaled = [part / part.amax(-1, keepdim=True).clamp_min(1e-12) for part in (seen.cam, seen.last)]
    yield "sum", scaled[0] + scaled[1]
    yield "attention alone", seen.last


def ideas(seen: Seen) -> Iterator[tuple[str, Tensor]]:
    """Name and maps [2, K, N] of every idea, the baseline and the paper's first."""
    p2p, similar = seen.attention, seen.similarity.clamp_min(0)
    yield BASE, spread(seen.both, p2p)
    yield PAPER, spread(seen.cam * modulated(seen.last, ordered(p2p), 0.3), p2p)
    yield "Original-CAM", seen.cam
    yield "not propagated", seen.both
    for name, weights in propagations(seen):
        yield f"propagate: {name}", spread(seen.both, weights)
    for name, c2p in class_attentions(seen):
        yield f"c2p: {name}", spread(seen.cam * c2p, p2p)
    ways: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        ("", lambda maps: spread(maps, p2p)),
        (", geometric", lambda maps: spread(maps, seen.geometric)),
        (", smaller of both ways", lambda maps: spread(maps, torch.minimum(p2p, p2p.mT))),
        (", balanced", lambda maps: spread(maps, seen.balanced)),
        (", geometric by tokens", lambda maps: spread(maps, seen.geometric * similar)),
    ]
    for name, c2p in modulations(seen):
        several = name.startswith("tokens") or name == "attention, ratio 0.3"
        for way, propagate in ways if several else ways[:1]:
            yield f"modulate: {name}{way}", propagate(seen.cam * c2p)
    for name, maps in couplings(seen):
        yield f"couple: {name}", spread(maps, p2p)


def backgrounds(maps: NDArray[np.float32]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Maps [K, H, W] in [0, 1], scaled so that an image's own background score is `ESTIMATED`."""
    highest = maps.max(0)
    estimates = {"Otsu": otsu(highest), "mean": float(highest.mean()),
                 "Otsu and 0.4, their mean": (otsu(highest) + 0.4) / 2}  # fmt: skip
    for name, estimate in estimates.items():
        yield name, np.clip(maps * np.float32(ESTIMATED / max(estimate, 1e-3)), 0, 1)
    each = np.array([otsu(one) for one in maps], np.float32)[:, None, None]
    yield "Otsu for each class", np.clip(maps * ESTIMATED / np.maximum(each, 1e-3), 0, 1)


def otsu(values: NDArray[np.float32]) -> float:
    """The threshold in [0, 1] between two groups of values, furthest apart (Otsu, 1979)."""
    counts, edges = np.histogram(values, 256, (0, 1))
    middle, below = (edges[:-1] + edges[1:]) / 2, np.cumsum(counts)
    mass, total = np.cumsum(counts * middle), below[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (mass[-1] * below / total - mass) ** 2 / (below * (total - below))
    return float(edges[1:][np.nanargmax(np.where(np.isfinite(between), between, -1))])
