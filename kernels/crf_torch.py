"""Mean-field inference of the dense CRF in plain PyTorch, on any device."""

from collections.abc import Iterator

import torch
from torch import Tensor

from wsssfast.kernels.permutohedral import Lattice

_SAFE = 80.0  # exp of more leaves float32
_CACHED = 1 << 17  # values


def mean_field(lattices: list[Lattice], unary: Tensor, iterations: int) -> Tensor:
    """Marginals after some rounds of message passing.

    Softmax only asks for each class's energy against the last one's, and messages are linear: the
    K - 1 maps Q_k - Q_K are filtered, not K, and what is alike in both is never rounded.

    Args:
        lattices: the pairwise terms, as `wsssfast.kernels.crf.pairwise_terms` weights them.
        unary: [P, G, K] energies of G settings that are computed side by side; +inf where a class
            does not take part, which the last one must.
        iterations: rounds, 0 or more.

    Returns:
        [P, G, K] in [0, 1], summing to 1 over K.
    """
    pixels, _, classes = unary.shape
    if classes == 1:
        return torch.ones_like(unary)
    start = (unary[..., -1:] - unary[..., :-1]).reshape(-1, classes - 1)
    logits, maps = start, torch.empty_like(start)
    for _ in range(iterations if lattices else 0):
        for rows, found, last in _marginals(logits):
            torch.sub(found, last, out=maps[rows])
        values = maps.reshape(pixels, -1)
        message = lattices[0].filter(values)
        for lattice in lattices[1:]:
            message += lattice.filter(values)
        logits = message.reshape(start.shape).add_(start)
    marginals = torch.cat([maps, maps[:, :1]], 1)
    for rows, found, last in _marginals(logits):
        marginals[rows, :-1], marginals[rows, -1:] = found, last[:, :1]
    return marginals.reshape(unary.shape)


def _marginals(logits: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows, their marginals of all classes but the last, and of the last in one column or in all.

    A CPU takes so many rows at a time as stay in its cache. They are too short for softmax, or
    sums or broadcasts along them, to be fast: a product with ones sums them into every column.
    """
    total, others = logits.shape
    step = total if logits.is_cuda else max(1, _CACHED // others)
    ones = torch.ones(others, others, device=logits.device)
    for begin in range(0, total, step):
        rows = slice(begin, begin + step)
        part = logits[rows]
        if logits.is_cuda or part.amax() > _SAFE:
            found = torch.softmax(torch.cat([part, torch.zeros_like(part[:, :1])], 1), 1)
            yield rows, found[:, :-1], found[:, -1:]
        else:
            powers = part.exp()
            last = torch.mm(powers, ones).add_(1).reciprocal_()
            yield rows, powers.mul_(last), last
