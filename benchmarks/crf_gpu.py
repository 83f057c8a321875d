"""Images/s of the dense CRF on a GPU, in batches, against one core of a CPU; one JSON line.

Generated scenes at one size, whose lattices are as those of photos. The peer is pydensecrf where
it is installed, else the torch backend on one thread of the CPU, which is no slower.

    python benchmarks/crf_gpu.py --json crf.json
    python benchmarks/crf_gpu.py --device cpu --images 2 --size 120x90    # a dry run
"""

import argparse
import json
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from wsssfast.bench.energies import smooth_energies
from wsssfast.bench.report import machine
from wsssfast.data import open_dataset
from wsssfast.kernels import dense_crf


def rate(images: list, energies: list, backend: str, rounds: int) -> tuple[float, list]:
    """Images/s, the best of some rounds after one to warm up, and the marginals."""
    found = dense_crf(images, energies, backend=backend)
    best = 0.0
    for _ in range(rounds):
        if images[0].is_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        found = dense_crf(images, energies, backend=backend)
        if images[0].is_cuda:
            torch.cuda.synchronize()
        best = max(best, len(images) / (time.perf_counter() - start))
    return best, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, default=20, help="of a batch")
    parser.add_argument("--size", default="500x375")
    parser.add_argument("--classes", default="2,3,21")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    size = tuple(map(int, args.size.split("x")))
    dataset = open_dataset("synthetic", None, f"val:{args.images}")
    images = [torch.from_numpy(np.array(dataset.load_image(item).resize(size))) for item in dataset]
    on_gpu = args.device == "cuda"
    peer = "pydensecrf" if find_spec("pydensecrf") else "torch"
    rows = {}
    for classes in map(int, args.classes.split(",")):
        energies = [smooth_energies(classes, size[::-1], n) for n in range(len(images))]
        alone, wanted = rate(images[:2], energies[:2], peer, 1)
        row = {"peer": peer, "peer_one_core": round(alone, 3)}
        moved = [[one.to(args.device) for one in many] for many in (images, energies)]
        for backend in ("triton", "torch") if on_gpu else ("torch",):
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            fast, found = rate(*moved, backend, 5)
            row[backend] = {
                "images_per_second": round(fast, 2),
                "times_the_peer": round(fast / alone, 2),
                "largest_difference": max(
                    (a.cpu() - b).abs().max().item() for a, b in zip(found, wanted, strict=False)
                ),
                "peak_mb": round(torch.cuda.max_memory_allocated() / 1e6) if on_gpu else None,
            }
        rows[classes] = row
    told = {
        "benchmark": "crf_gpu", **machine(args.device), "images": args.images, "size": args.size,
        "by_classes": rows,
    }  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
