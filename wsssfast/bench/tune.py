"""Find launch settings that are faster on this machine's GPU than those in use, and keep them.

From the settings in use, one of them is changed at a time, as long as that gains more than 2 %.
What does not compile, does not fit the chip or computes something else is passed over.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from wsssfast import kernels
from wsssfast.bench import operations
from wsssfast.bench.options import PRECISIONS, BenchOptions, Spec
from wsssfast.bench.run import told_of
from wsssfast.bench.search import GAIN, Settings, climb, merged
from wsssfast.bench.shapes import METHOD, Shape, shape_of
from wsssfast.errors import WsssError
from wsssfast.kernels import launch
from wsssfast.precision import Precision


@dataclass(frozen=True)
class Tuned:
    """What was found for a kernel at one size.

    Attributes:
        kernel: a table of `launch.toml`.
        patches: rows up to which the settings hold.
        bits: of its inputs.
        width: of a head; 0 where it does not matter.
        before_ms: with the settings in use before.
        after_ms: with those found.
        settings: found; those in use where none were faster.
        tried: how many others were timed.
        failed: how many others did not run.
        kept: whether they are used from now on.
    """

    kernel: str
    patches: int
    bits: int
    width: int
    before_ms: float
    after_ms: float
    settings: Settings
    tried: int
    failed: int
    kept: bool = False

    def row(self, arch: int) -> launch.Row:
        """As `launch.remember` keeps it."""
        limits = {"arch": [arch], "bits": self.bits, "up_to": self.patches}
        return {**limits, **({"width": self.width} if self.width else {}), **self.settings}

    def to_json(self) -> dict[str, Any]:
        """Every field as plain JSON types."""
        return asdict(self)


def tune(
    options: BenchOptions,
    progress: Callable[[int], None] = lambda cases: None,
    begin: Callable[[str], None] = lambda case: None,
) -> list[Tuned]:
    """Tune every kernel that has settings, for the sizes and precisions asked for.

    Args:
        options: sizes, precisions, network; the middle one of the batch sizes is taken.
        progress: called with 1 after each kernel and size.
        begin: called with what each of them is before it is tuned.

    Raises:
        WsssError: no GPU with Triton.
    """
    require_kernels(options.device)
    device = torch.cuda.get_device_name()
    major, minor = torch.cuda.get_device_capability()
    found = []
    for kernel, spec in launches_of(options):
        begin(f"{kernel}: {told_of(spec)}")
        found.append(_tune_one(kernel, spec))
        progress(1)
    for kernel in {one.kernel for one in found if one.after_ms < one.before_ms}:
        rows = [one.row(10 * major + minor) for one in found if one.kernel == kernel]
        rows = merged(launch.tuned(device, kernel), rows)
        launch.remember(device, kernel, rows)
        kept = launch.tuned(device, kernel) == rows
        found = [replace(one, kept=kept) if one.kernel == kernel else one for one in found]
    return found


def require_kernels(device: str) -> None:
    """Refuse a device that has no kernels to tune.

    Raises:
        WsssError: no GPU with Triton.
    """
    if kernels.backend.for_device(device) != "triton":
        raise WsssError(
            f"Expected a CUDA device with Triton to tune kernels for, found {device}: its path has "
            "no launch settings.",
            "Leave out --tune, or run it on a machine with a GPU.",
        )


def launches_of(options: BenchOptions) -> list[tuple[str, Spec]]:
    """The kernels and sizes to tune; precisions of equal width once."""
    options = options.resolved()
    batch = sorted(options.batches)[len(options.batches) // 2]
    widths: dict[int, Precision] = {
        16 if name != "fp32" else 32: name for name in reversed(options.precisions)
    }
    return [
        (
            kernel,
            Spec(
                _CALLS[kernel].operation, options.arch, options.classes, options.per_image, size,
                batch, precision, options.device,
            ),
        )
        for kernel in launch.shipped()
        if kernel in _CALLS
        for size in options.sizes
        for precision in (widths.values() if _CALLS[kernel].by_precision else PRECISIONS[:1])
    ]  # fmt: skip


@dataclass(frozen=True)
class _Call:
    """How a kernel is launched for timing: an operation of the benchmark whose inputs it takes."""

    operation: str
    run: Callable[..., object]
    by_precision: bool = False


def _modulate(shape: Shape, cam: Tensor, c2p: Tensor, p2p: Tensor) -> object:
    from wsssfast.kernels import fused

    return fused.modulated_cam(cam, c2p, p2p, shape.related, METHOD.alpha)


def _propagate(shape: Shape, cam: Tensor, c2p: Tensor, p2p: Tensor) -> object:
    from wsssfast.kernels import fused

    return fused.propagate(cam, p2p)


def _flash(shape: Shape, layers: operations.Layers) -> object:
    from wsssfast.kernels.flash import flash

    query, key, value = layers[0]
    return flash(query, key, value, shape.width**-0.5)


_CALLS = {
    "mean": _Call("attention_mean", operations.mean_alone, by_precision=True),
    "modulate": _Call("refine", _modulate),  # with the selection before it
    "propagate": _Call("propagate_gather", _propagate),
    "flash": _Call("attention", _flash, by_precision=True),
}


@torch.no_grad()
def _tune_one(kernel: str, spec: Spec) -> Tuned:
    from triton.testing import do_bench

    shape = shape_of(spec)
    inputs = operations.OPERATIONS[spec.what].inputs(shape)

    def run() -> object:
        return _CALLS[kernel].run(shape, *inputs)

    with _noting(kernel) as noted:
        expected = _tensors(run())
    like, patches, width, start = noted[0]
    limits = Tuned(kernel, patches, 8 * like.element_size(), width, 0, 0, start, 0, 0)
    major, minor = torch.cuda.get_device_capability()

    def measure(settings: Settings) -> float | None:
        row = replace(limits, settings=settings).row(10 * major + minor)
        try:
            with _using(kernel, row):
                for found, wanted in zip(_tensors(run()), expected, strict=True):
                    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-5)
                return float(do_bench(run, warmup=10, rep=50, return_mode="median"))
        except Exception:  # of the compiler, the driver or the comparison: not a candidate
            return None

    best, _, tried, failed = climb(start, measure)
    before, after = measure(start), measure(best)  # again, one after the other
    if before is None or after is None or after >= GAIN * before:
        best, after = start, before
    assert before is not None and after is not None
    return replace(
        limits, before_ms=before, after_ms=after, settings=best, tried=tried, failed=failed
    )


@contextmanager
def _noting(kernel: str) -> Iterator[list[tuple[Tensor, int, int, Settings]]]:
    """Input, patches, width and settings of every launch of a kernel."""
    noted: list[tuple[Tensor, int, int, Settings]] = []
    original = launch.settings

    def note(name: str, like: Tensor, patches: int, width: int = 0) -> Settings:
        found = original(name, like, patches, width)
        if name == kernel:
            own = {key for row in launch.shipped()[kernel] for key in row}
            kept = {key: value for key, value in found.items() if key in own}
            noted.append((like, patches, width, kept))
        return found

    with patch.object(launch, "settings", note):
        yield noted


@contextmanager
def _using(kernel: str, row: launch.Row) -> Iterator[None]:
    """Launch a kernel with a row; all others as before."""
    original = launch.tuned

    def instead(device: str, name: str) -> list[launch.Row]:
        return [row] if name == kernel else original(device, name)

    with patch.object(launch, "tuned", instead):
        yield


def _tensors(result: object) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result.clone()]
    assert isinstance(result, (tuple, list))
    return [tensor.clone() for tensor in result]
