"""Decoded images/s of JPEG decoders, and how far their pixels are from PIL's; one JSON line.

PIL is what the package uses; torchvision is there wherever timm is; others are timed where they are
installed (simplejpeg, opencv-python-headless). Files are read before; one thread and two.

    python benchmarks/decoders.py VOCdevkit/VOC2012/JPEGImages
"""

import argparse
import io
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image, features

from wsssfast.bench.report import machine


def pil(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def decoders() -> dict[str, Callable[[bytes], np.ndarray]]:
    """Every decoder that is installed."""
    found: dict[str, Callable[[bytes], np.ndarray]] = {"PIL": pil}
    if find_spec("torchvision"):
        from torchvision.io import ImageReadMode, decode_jpeg

        def by_torchvision(data: bytes) -> np.ndarray:
            flat = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            return decode_jpeg(flat, ImageReadMode.RGB).permute(1, 2, 0).numpy()

        found["torchvision"] = by_torchvision
    if find_spec("simplejpeg"):
        import simplejpeg

        found["simplejpeg"] = lambda data: simplejpeg.decode_jpeg(data)
    if find_spec("cv2"):
        import cv2

        def by_opencv(data: bytes) -> np.ndarray:
            return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]

        cv2.setNumThreads(1)
        found["opencv"] = by_opencv
    return found


def rate(decode: Callable[[bytes], np.ndarray], files: list[bytes], threads: int) -> float:
    """Images/s."""
    begin = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda data: decode(data).shape, files))
    return len(files) / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    files = [path.read_bytes() for path in sorted(args.folder.glob("*.jpg"))[: args.images]]
    known = decoders()
    rates: dict[tuple[str, int], list[float]] = {}
    for _ in range(args.rounds):
        for name, decode in known.items():
            for threads in (1, 2):
                rates.setdefault((name, threads), []).append(rate(decode, files, threads))
    rows = {}
    for name, decode in known.items():
        off = [np.abs(decode(data).astype(int) - pil(data)) for data in files]
        rows[name] = {
            "images_per_second": {t: round(median(rates[name, t]), 1) for t in (1, 2)},
            "images_with_other_pixels": sum(bool(d.any()) for d in off),
            "largest_difference": max(int(d.max()) for d in off),
        }
    print(json.dumps({
        "benchmark": "decoders", **machine("cpu"), "images": len(files),
        "libjpeg_turbo_of_pil": features.version_feature("libjpeg_turbo"), "decoders": rows,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
