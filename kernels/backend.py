"""Which implementation computes: Triton on a GPU, batched PyTorch elsewhere, or the reference."""

import os
import warnings
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["auto", "triton", "eager", "reference"]
MOST_PATCHES, MOST_WIDTH = 16384, 128
_NAMES = ("auto", "triton", "eager", "reference")


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on CPU tensors (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "") == "1"


def choose(
    backend: Backend, tensor: Tensor, *, patches: int = 0, width: int = 0
) -> Literal["triton", "eager", "reference"]:
    """The implementation for a tensor.

    `auto` takes Triton for CUDA tensors of at most 32 bits where it is installed, else eager. Sizes
    beyond what the kernels hold in registers take eager too, with one warning.

    Args:
        backend: what the caller asked for.
        tensor: an input.
        patches: N, where rows of N values are ranked.
        width: of a head, where attention is computed.

    Raises:
        ValueError: an unknown name, or Triton asked for where it cannot run.
    """
    if backend not in _NAMES:
        raise ValueError(f"expected backend {', '.join(_NAMES)}, received {backend!r}")
    if backend == "triton" and not (tensor.is_cuda or interpreted()):
        raise ValueError(
            f"backend triton expects CUDA tensors (or TRITON_INTERPRET=1), received {tensor.device}"
        )
    chosen = for_device(tensor.device) if backend == "auto" else backend
    if chosen == "triton":
        if tensor.dtype == torch.float64:
            return _instead("float64")
        if patches > MOST_PATCHES:
            return _instead(f"more than {MOST_PATCHES} patches")
        if width > MOST_WIDTH:
            return _instead(f"heads wider than {MOST_WIDTH}")
    return chosen


@cache
def _instead(what: str) -> Literal["eager"]:
    warnings.warn(
        f"The Triton kernels do not take {what}; the slower PyTorch path computes instead.",
        RuntimeWarning,
        stacklevel=3,
    )
    return "eager"


def for_device(device: torch.device | str) -> Literal["triton", "eager"]:
    """What `auto` means on a device, for float32 and less."""
    cuda = torch.device(device).type == "cuda"
    return "triton" if cuda and find_spec("triton") is not None else "eager"
