"""One case: several ways to compute the same thing from the same inputs, at one size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from wsssfast.bench.options import Spec

Call = Callable[[int], object]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Contender:
    """One way to compute it.

    Attributes:
        name: as tables show it; ours is wsssfast.
        call: computes once, from the n-th set of inputs.
        needs: bytes that it holds at once at least, beyond its inputs.
        graph: whether a CUDA graph can replay it: kernels only, no copies from or to the host.
    """

    name: str
    call: Call
    needs: int = 0
    graph: bool = False


@dataclass(frozen=True)
class Work:
    """The least that any way has to do, of the shapes alone.

    Attributes:
        bytes: inputs read once and outputs written once; 0: not counted.
        flops: additions and multiplications.
    """

    bytes: int
    flops: int


@dataclass(frozen=True)
class Case:
    """Contenders of one comparison.

    Attributes:
        spec: what it was built from.
        patches: N of an image.
        contenders: in the order of the table.
        baseline: name of the contender that ratios are to.
        work: of the method; None where it says nothing.
    """

    spec: Spec
    patches: int
    contenders: tuple[Contender, ...]
    baseline: str
    work: Work | None = None


def build(spec: Spec, sets: int) -> Case:
    """The case of a spec, with so many sets of inputs to rotate; also in a fresh process."""
    from wsssfast.bench import forward, operations

    module: Any = forward if spec.what == "forward" else operations
    case: Case = module.build(spec, sets)
    return case


def rotating(way: Callable[..., object], inputs: Sequence[tuple[Any, ...]]) -> Call:
    """The call of a function on the n-th of several sets of arguments, over and over."""
    return lambda n: way(*inputs[n % len(inputs)])


def dtype_of(precision: str) -> torch.dtype:
    """The type that fp32, bf16 or fp16 names."""
    return _DTYPES[precision]
