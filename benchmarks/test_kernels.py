"""The forward and each operation, ours and its peers, under pytest-benchmark.

One group a comparison and size, on the GPU where there is one. `wsssfast bench` has the contenders
take turns and measures memory too; this is for a quick look, and for comparing two versions:

    pytest benchmarks/test_kernels.py -k refine --benchmark-autosave
    WSSSFAST_BENCH_SIZES=500x375,768x768 pytest benchmarks/test_kernels.py
"""

import os
from functools import lru_cache

import pytest
import torch

from wsssfast.bench import forward, operations
from wsssfast.bench.cases import build
from wsssfast.bench.options import Spec, parse_sizes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = parse_sizes(os.environ.get("WSSSFAST_BENCH_SIZES", "96x96,224x224"))
WAYS = {"forward": forward.WAYS} | {
    name: operations.OPERATIONS[name].ways for name in operations.names(DEVICE)
}
SETS = 2  # of inputs, in rotation


@lru_cache(maxsize=1)
def case_of(what, size):
    return build(Spec(what, "deit_tiny_patch16_224", 20, 2, size, 1, "fp32", DEVICE), SETS)


@pytest.mark.parametrize(
    ("what", "size", "way"),
    [(what, size, way) for what in WAYS for size in SIZES for way in WAYS[what]],
    ids=lambda value: "x".join(map(str, value)) if isinstance(value, tuple) else value,
)
@pytest.mark.benchmark(max_time=0.5, min_rounds=5, warmup=True, warmup_iterations=2)
def test_speed(benchmark, what, size, way):
    case = case_of(what, size)
    (call,) = (contender.call for contender in case.contenders if contender.name == way)
    benchmark.group = f"{what} {size[0]}x{size[1]}, {case.patches} patches, {DEVICE}"
    turn = iter(range(1 << 62))

    def run():
        call(next(turn))
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark(run)
