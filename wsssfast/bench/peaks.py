"""The most that this machine reaches: bytes copied and multiply-adds a second, measured."""

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from wsssfast.bench.cases import Contender, Work, dtype_of
from wsssfast.bench.timing import take_turns
from wsssfast.errors import WsssError

_SECONDS = 1.0


@dataclass(frozen=True)
class Peaks:
    """Ceilings of one machine.

    Attributes:
        bytes_per_second: of a large copy, bytes read and bytes written.
        flops_per_second: of a large matrix product, by precision; PyTorch's default for fp32.
    """

    bytes_per_second: float
    flops_per_second: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Every field as plain JSON types."""
        return asdict(self)

    def percent(self, work: Work, precision: str, milliseconds: float) -> tuple[float, str]:
        """How much of the ceiling that binds was reached, in %, and which it is.

        Args:
            work: what was done at least.
            precision: of the matrix product to compare with.
            milliseconds: that it took.
        """
        parts = {
            "bytes": work.bytes / self.bytes_per_second,
            "flops": work.flops / self.flops_per_second[precision],
        }
        bound = max(parts, key=lambda name: parts[name])
        return 1e5 * parts[bound] / milliseconds, bound


def measure_peaks(device: str, precisions: tuple[str, ...]) -> Peaks:
    """Copy and multiply large tensors: GPUs 1 GB and 8192 a side, CPUs 256 MB and 1024 a side.

    Raises:
        WsssError: they do not fit into the memory that is free.
    """
    gpu = device == "cuda"
    source = torch.ones(1 << (28 if gpu else 26), device=device)  # float32
    target = torch.empty_like(source)
    contenders = [Contender("copy", lambda n: target.copy_(source))]
    side = 8192 if gpu else 1024
    for precision in dict.fromkeys(("fp32", *precisions)):
        left = torch.randn(2, side, side, device=device).to(dtype_of(precision))
        contenders.append(Contender(precision, partial(_multiply, left)))
    turns = take_turns(contenders, device, _SECONDS, sets=1)
    if turns.failed:
        name, reason = next(iter(turns.failed.items()))
        raise WsssError(f"Expected to measure what this machine reaches ({name}): {reason}.")
    seconds = {name: found.median / 1e3 for name, found in turns.times.items()}
    copy = seconds.pop("copy")
    return Peaks(
        2 * 4 * source.numel() / copy,
        {precision: 2 * side**3 / taken for precision, taken in seconds.items()},
    )


def _multiply(pair: Tensor, n: int) -> Tensor:
    return pair[0] @ pair[1]
