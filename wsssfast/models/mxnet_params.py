"""Arrays of MXNet's .params files, in which ImageNet weights of ResNet38 are published.

Read with NumPy alone, without MXNet and without executing anything: an MXNet that still installs
is what keeps users from these weights. The format is that of `NDArray::Load` and its older forms
in apache/mxnet `src/ndarray/ndarray.cc`.
"""

import struct
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wsssfast.errors import WsssError

_FILE = 0x112
_OLDER = 0xF993FAC8  # an array with 64-bit sizes; anything less is a number of dimensions
_STORAGE = (0xF993FAC9, 0xF993FACA)  # these say how it is stored, too
_TYPES = {0: np.float32, 1: np.float64, 2: np.float16, 3: np.uint8, 4: np.int32, 6: np.int64}
_MOST_DIMENSIONS = 32


def is_mxnet(path: Path) -> bool:
    """Whether a file begins as MXNet's do."""
    with path.open("rb") as file:
        return file.read(8) == struct.pack("<Q", _FILE)


def read_mxnet(path: Path) -> dict[str, Tensor]:
    """Tensors by name; `arg:` and `aux:` before the names are dropped.

    Raises:
        WsssError: damaged, or of arrays that are sparse or of another type.
    """
    try:
        return _Cursor(path.read_bytes()).file()
    except (ValueError, struct.error, UnicodeDecodeError) as error:
        raise WsssError(
            f"Expected a .params file of MXNet at {path}, found a damaged one: {error}."
        ) from error


class _Cursor:
    """Reads on and on; never beyond the end, and never more than there is."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = memoryview(content), 0

    def take(self, size: int) -> memoryview:
        if not 0 <= size <= len(self.content) - self.at:
            raise ValueError(f"it ends where {size} bytes more are named")
        self.at += size
        return self.content[self.at - size : self.at]

    def number(self, kind: str) -> int:
        return int(struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0])

    def file(self) -> dict[str, Tensor]:
        if self.number("Q") != _FILE:
            raise ValueError("it begins otherwise")
        self.take(8)
        arrays = [self.array() for _ in range(self._count())]
        names = [bytes(self.take(self.number("Q"))).decode() for _ in range(self._count())]
        if len(names) != len(arrays) or len(set(names)) != len(names):
            raise ValueError(f"{len(arrays)} arrays have {len(set(names))} names")
        short = [name.removeprefix("arg:").removeprefix("aux:") for name in names]
        return dict(zip(short, arrays, strict=True))

    def _count(self) -> int:
        count = self.number("Q")
        if count > len(self.content) // 4:
            raise ValueError(f"it speaks of {count} arrays")
        return count

    def array(self) -> Tensor:
        kind = self.number("I")
        if kind in _STORAGE and self.number("i") != 0:
            raise ValueError("an array is sparse")
        sizes, dimensions = ("q", self.number("I")) if kind >= _OLDER else ("I", kind)
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"an array has {dimensions} dimensions")
        shape = [self.number(sizes) for _ in range(dimensions)]
        if not shape:
            return torch.zeros(0)
        self.take(8)  # the device that it was on
        kind = self.number("i")
        if kind not in _TYPES or min(shape) < 0:
            raise ValueError("an array has an unknown type or a negative size")
        dtype = np.dtype(_TYPES[kind])
        data = self.take(prod(shape) * dtype.itemsize)
        return torch.from_numpy(np.frombuffer(data, dtype).reshape(shape).copy())
