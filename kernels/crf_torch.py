"""Mean-field inference of the dense CRF in plain PyTorch, on any device."""

import torch
from torch import Tensor

from wsssfast.kernels.permutohedral import Lattice

_SAFE = 80.0  # exp of more leaves float32


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
    ones = torch.ones(classes - 1, classes - 1, device=unary.device)
    logits = start
    for _ in range(iterations if lattices else 0):
        found, last = _marginals(logits, ones)
        maps = found.sub_(last).reshape(pixels, -1)
        message = lattices[0].filter(maps)
        for lattice in lattices[1:]:
            message += lattice.filter(maps)
        logits = message.reshape(start.shape).add_(start)
    found, last = _marginals(logits, ones)
    return torch.cat([found, last[:, :1]], 1).reshape(unary.shape)


def _marginals(logits: Tensor, ones: Tensor) -> tuple[Tensor, Tensor]:
    """Of all classes but the last [R, K - 1], and of the last, in one column or in each."""
    if logits.is_cuda or logits.amax() > _SAFE:
        found = torch.softmax(torch.cat([logits, torch.zeros_like(logits[:, :1])], 1), 1)
        return found[:, :-1].contiguous(), found[:, -1:]
    powers = logits.exp()  # rows are too short for softmax, or a sum over them, to be fast
    last = torch.mm(powers, ones).add_(1).reciprocal_()
    return powers.mul_(last), last
