"""The random walk against PSA's way, a dense matrix that is squared; ends in one JSON line.

Both start from the same affinities of one image, in turns; the dense way is float32, as in PSA and
IRN. Peak memory is what a second call adds to a fresh process; the dense way squares once there,
which needs what six times do. `--largest-dense N` leaves the dense way out above N cells, where it
takes minutes and gigabytes.

    python benchmarks/walk_speed.py
"""

import argparse
import json
import math
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor

import torch
from torch import Tensor

from wsssfast.bench.memory import peak_of
from wsssfast.bench.report import machine
from wsssfast.kernels.affinity import OFFSETS, pair_affinity, starts
from wsssfast.kernels.random_walk import random_walk

SIZES = ((321, 321), (500, 375), (1024, 1024))  # width, height in pixels
BETA = 8


def case(size: tuple[int, int], maps: int) -> tuple[Tensor, Tensor]:
    """Affinities of smooth random features, and maps in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    width, height = (math.ceil(side / 8) for side in size)
    coarse = torch.randn(1, 16, height // 5 + 1, width // 5 + 1, generator=generator)
    features = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return pair_affinity(features)[0], torch.rand(maps, height, width, generator=generator)


def dense(affinity: Tensor, maps: Tensor, log_steps: int) -> Tensor:
    """PSA's `infer_aff.py`: a matrix from lists of pairs, its power and its squares."""
    _, height, width = maps.shape
    cells = torch.arange(height * width).reshape(height, width)
    rows, columns = starts(height, width)
    source = cells[rows, columns].flatten()
    target = torch.stack([source + dy * width + dx for dy, dx in OFFSETS]).flatten()
    source = source.repeat(len(OFFSETS))
    values = affinity[:, rows, columns].flatten()
    own = torch.arange(height * width)
    index = torch.stack([torch.cat([source, own, target]), torch.cat([target, own, source])])
    whole = torch.cat([values, torch.ones(len(own)), values])
    size = (len(own), len(own))
    matrix = torch.sparse_coo_tensor(index, whole, size, check_invariants=False).to_dense() ** BETA
    transition = matrix / matrix.sum(0, keepdim=True)
    for _ in range(log_steps):
        transition = transition @ transition
    return (maps.flatten(1) @ transition).reshape(maps.shape)


def sparse(affinity: Tensor, maps: Tensor, log_steps: int) -> Tensor:
    return random_walk([affinity], [maps], BETA, 2**log_steps)[0]


WAYS = {"dense": dense, "wsssfast": sparse}


def peak(way: str, size: tuple[int, int], maps: int, log_steps: int, threads: int) -> int:
    """Bytes that a call adds to this process."""
    torch.set_num_threads(threads)
    made = case(size, maps)
    return peak_of(lambda: WAYS[way](*made, 1 if way == "dense" else log_steps))


def measured(size: tuple[int, int], maps: int, log_steps: int, runs: int, ways: list[str]) -> dict:
    """Seconds, peak memory and the largest difference at one size."""
    made = case(size, maps)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    found = {}
    for _ in range(runs):
        for way in ways:
            start = time.perf_counter()
            found[way] = WAYS[way](*made, log_steps)
            seconds[way].append(time.perf_counter() - start)
    told: dict = {"seconds": {way: round(statistics.median(s), 4) for way, s in seconds.items()}}
    told["peak_bytes"] = {}
    for way in ways:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            job = pool.submit(peak, way, size, maps, log_steps, torch.get_num_threads())
            told["peak_bytes"][way] = job.result()
    if len(ways) == 2:
        for key in ("seconds", "peak_bytes"):
            ratio = told[key]["dense"] / told[key]["wsssfast"]
            told[f"times_less_{key.partition('_')[0]}"] = round(ratio, 1)
        difference = (found["dense"] - found["wsssfast"]).abs().max()
        told["largest_difference"] = float(f"{difference:.2g}")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--maps", type=int, default=3, help="classes of an image, and background")
    parser.add_argument("--log-steps", type=int, default=6)
    parser.add_argument("--largest-dense", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    rows = {}
    for size in SIZES:
        cells = math.prod(math.ceil(side / 8) for side in size)
        ways = [way for way in WAYS if way != "dense" or cells <= args.largest_dense]
        runs = args.runs if cells < 5000 else 1
        rows["x".join(map(str, size))] = {
            "cells": cells, **measured(size, args.maps, args.log_steps, runs, ways)
        }  # fmt: skip
    print(json.dumps({
        "benchmark": "walk_speed", **machine("cpu"), "maps": args.maps, "steps": 2**args.log_steps,
        "by_size": rows,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
