"""Images/s of the dense CRF's backends against pydensecrf; ends in one JSON line.

Each image goes through all backends in turn, on one thread, and ratios are of the sums of each
image's best of two; then two processes of each backend share the images, as `--crf-workers 2`
does. Sizes of the spatial lattice that were seen before are cached, as in an export. Peak memory is
a fresh process's, above what its imports take, for one image of the largest size.

    python benchmarks/crf_speed.py --dataset voc --data-root VOCdevkit/VOC2012 --split val \\
        --images 40 --classes 2,3,5,21
    python benchmarks/crf_speed.py … --resize 500x375
"""

import argparse
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from wsssfast.bench.arguments import data_arguments, opened
from wsssfast.bench.energies import smooth_energies
from wsssfast.bench.report import machine
from wsssfast.kernels import dense_crf

BACKENDS = ("pydensecrf", "torch")


def refine(backend: str, image: np.ndarray, classes: int, seed: int) -> float:
    """Seconds of one image, the energies not counted."""
    energy = smooth_energies(classes, image.shape[:2], seed)
    start = time.perf_counter()
    dense_crf([torch.from_numpy(image)], [energy], backend=backend)
    return time.perf_counter() - start


def one_thread() -> None:
    torch.set_num_threads(1)


def peak(backend: str, image: np.ndarray, classes: int) -> int:
    """Bytes that one image takes at its peak, in a process of its own."""
    refine(backend, image[:20, :20].copy(), classes, 0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = in_status("VmRSS")
    refine(backend, image, classes, 0)
    return in_status("VmHWM") - before


def in_status(key: str) -> int:
    """Bytes that Linux tells of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024


def in_two(backend: str, images: list[np.ndarray], classes: int) -> float:
    """Images/s of two processes, from their first result on."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), one_thread) as pool:
        list(pool.map(refine, [backend] * 4, images[:4], [2] * 4, range(4)))
        start = time.perf_counter()
        work = [pool.submit(refine, backend, im, classes, n) for n, im in enumerate(images)]
        for one in work:
            one.result()
        return len(images) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    data_arguments(parser)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--resize", metavar="WxH", help="bring all images to one size")
    parser.add_argument("--classes", default="2,3,5,21", help="background included")
    args = parser.parse_args()
    one_thread()
    dataset = opened(args)
    items = dataset.items[:: max(1, len(dataset) // args.images)][: args.images]
    images = []
    for item in sorted(items, key=dataset.image_size):
        image = dataset.load_image(item)
        if args.resize:
            image = image.resize(tuple(map(int, args.resize.split("x"))))
        images.append(np.array(image))
    rows = {}
    spawn = multiprocessing.get_context("spawn")
    for classes in map(int, args.classes.split(",")):
        best = {backend: np.full(len(images), np.inf) for backend in BACKENDS}
        for n, image in enumerate(images):
            for turn in range(2):
                for backend in BACKENDS[:: 1 - 2 * ((n + turn) % 2)]:
                    best[backend][n] = min(best[backend][n], refine(backend, image, classes, n))
        single = {backend: len(images) / seconds.sum() for backend, seconds in best.items()}
        double = {backend: in_two(backend, images, classes) for backend in BACKENDS}
        peaks = {}
        for backend in BACKENDS:
            with ProcessPoolExecutor(1, spawn, one_thread) as pool:
                peaks[backend] = pool.submit(peak, backend, images[-1], classes).result()
        rows[classes] = {
            "one_core": {b: round(rate, 3) for b, rate in single.items()},
            "one_core_ratio": round(single["torch"] / single["pydensecrf"], 3),
            "two_processes": {b: round(rate, 3) for b, rate in double.items()},
            "two_processes_ratio": round(double["torch"] / double["pydensecrf"], 3),
            "peak_mb": {b: round(size / 1e6) for b, size in peaks.items()},
        }
    print(json.dumps({
        "benchmark": "crf_speed", **machine("cpu"), "dataset": args.dataset, "images": len(images),
        "resize": args.resize, "iterations": 10, "by_classes": rows,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
