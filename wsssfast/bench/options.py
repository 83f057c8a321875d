"""What a benchmark measures, in plain values; checked before anything is computed."""

import re
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar, get_args

from wsssfast.errors import WsssError
from wsssfast.parse import parts_of
from wsssfast.precision import Precision

WHAT = ("forward", "operations")
N = TypeVar("N", bound=str)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
_MOST = 1 << 14  # pixels of a side, images of a batch: beyond are typing mistakes


@dataclass(frozen=True)
class BenchOptions:
    """What to measure; every field is recorded with the result.

    Attributes:
        what: of `WHAT`.
        arch: timm's name of the backbone; its weights are random.
        classes: class tokens C.
        per_image: classes of each image that are refined, as its labels would choose them.
        sizes: of the images, (H, W).
        batches: images a forward pass; empty: 1 on CPU; 1, 16 and 64 on a GPU.
        precisions: of the network; empty: fp32 on CPU, all on a GPU.
        device: cpu or cuda.
        seconds: to measure a case for, shared by its contenders; at least five turns each.
        limit: seconds after which no further case is begun; 0: none.
        memory: whether peak memory is measured too (on CPU in a fresh process each).
        compiled: whether torch.compile of the peers takes part (on CUDA).
    """

    what: tuple[str, ...] = WHAT
    arch: str = "deit_small_patch16_224"
    classes: int = 20
    per_image: int = 2
    sizes: tuple[tuple[int, int], ...] = ((224, 224), (500, 375), (768, 768))
    batches: tuple[int, ...] = ()
    precisions: tuple[Precision, ...] = ()
    device: str = "cpu"
    seconds: float = 5.0
    limit: float = 0.0
    memory: bool = True
    compiled: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.per_image <= self.classes <= 1000:
            raise WsssError(
                f"Expected 1 to 1000 classes, of which at least one and at most all are an "
                f"image's, found {self.classes} and {self.per_image}."
            )
        if not self.sizes:
            raise WsssError("Expected at least one size, found none.")
        if not (self.seconds > 0 and self.limit >= 0):
            raise WsssError(
                f"Expected seconds above 0 and a limit of 0 or more, found {self.seconds:g} and "
                f"{self.limit:g}."
            )

    def resolved(self) -> "BenchOptions":
        """The same with what was left to the device filled in."""
        gpu = self.device == "cuda"
        return replace(
            self,
            batches=self.batches or ((1, 16, 64) if gpu else (1,)),
            precisions=self.precisions or (PRECISIONS if gpu else ("fp32",)),
            compiled=self.compiled and gpu,
        )

    def to_json(self) -> dict[str, Any]:
        """Every field as plain JSON types."""
        return {**asdict(self), "sizes": ["x".join(map(str, size)) for size in self.sizes]}


@dataclass(frozen=True)
class Spec:
    """One case in plain values, so that a fresh process can build it again.

    Attributes:
        what: forward, or the name of an operation.
        arch: timm's name of the backbone.
        classes: class tokens C.
        per_image: classes of each image that are refined.
        size: (H, W) of the images.
        batch: images at a time.
        precision: fp32, bf16 or fp16.
        device: cpu or cuda.
        compiled: whether torch.compile takes part.
    """

    what: str
    arch: str
    classes: int
    per_image: int
    size: tuple[int, int]
    batch: int
    precision: Precision
    device: str
    compiled: bool = False


def parse_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """Read `224x224,500x375` as (H, W) pairs.

    Raises:
        WsssError: anything else.
    """
    sizes = []
    for part in parts_of(text):
        found = re.fullmatch(r"(\d+)x(\d+)", part)
        if not found or not all(1 <= int(side) <= _MOST for side in found.groups()):
            raise WsssError(
                f"Expected sizes HxW of 1 to {_MOST} pixels a side, found {part[:40]!r}.",
                "Such as --size 224x224,500x375.",
            )
        sizes.append((int(found[1]), int(found[2])))
    return tuple(sizes)


def parse_counts(text: str) -> tuple[int, ...]:
    """Read `1,16,64`.

    Raises:
        WsssError: anything but whole numbers of at least 1.
    """
    for part in parts_of(text):
        if not re.fullmatch(r"\d+", part) or not 1 <= int(part) <= _MOST:
            raise WsssError(
                f"Expected whole numbers of 1 to {_MOST} images, found {part[:40]!r}.",
                "Such as --batch 1,16,64.",
            )
    return tuple(int(part) for part in parts_of(text))


def parse_names(text: str, known: tuple[N, ...]) -> tuple[N, ...]:
    """Read names separated by commas, each out of `known`.

    Raises:
        WsssError: another name.
    """
    for part in parts_of(text):
        if part not in known:
            raise WsssError(f"Expected names out of {', '.join(known)}, found {part[:40]!r}.")
    return tuple(known[known.index(part)] for part in dict.fromkeys(parts_of(text)))
