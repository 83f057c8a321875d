"""Speed of `export-cams` by precision, and how far its labels agree with float32's; one JSON line.

python benchmarks/precision.py --dataset voc --data-root VOCdevkit/VOC2012 --split val \\
        --checkpoint classifier.safetensors --images 40 --precisions bf16
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from wsssfast.bench.arguments import data_arguments, opened
from wsssfast.bench.report import machine
from wsssfast.cam_options import CamOptions
from wsssfast.export import export_cams
from wsssfast.models.checkpoint import load_model
from wsssfast.shards import CamShards, open_shards


def agreement(found: CamShards, wanted: CamShards, threshold: float) -> float:
    """Share of pixels of equal labels."""
    same = pixels = 0
    for image_id in wanted:
        a, b = (shards.mask(image_id, threshold) for shards in (found, wanted))
        same += int((a == b).sum())
        pixels += a.size
    return same / pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    data_arguments(parser)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--precisions", default="bf16,fp16")
    parser.add_argument("--threshold", type=float, default=0.45)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    dataset = opened(args)
    step = max(1, len(dataset) // args.images)
    dataset = replace(dataset, items=dataset.items[::step][: args.images])
    model = load_model(args.checkpoint).to(args.device)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("fp32", *args.precisions.split(",")):
            out = Path(folder) / precision
            begin = time.perf_counter()
            export_cams(model, dataset, out, CamOptions(precision=precision))
            seconds = time.perf_counter() - begin
            wanted, found = open_shards(Path(folder) / "fp32"), open_shards(out)
            pairs = [(found.cam(i)[1], wanted.cam(i)[1]) for i in wanted]
            rows[precision] = {
                "images_per_second": round(len(dataset) / seconds, 3),
                "labels_equal": round(agreement(found, wanted, args.threshold), 6),
                "mean_difference": float(np.mean([np.abs(a - b).mean() for a, b in pairs])),
            }
    print(json.dumps({
        "benchmark": "precision", **machine(args.device), "arch": model.config.arch,
        "dataset": args.dataset, "images": len(dataset), "threshold": args.threshold,
        "precisions": rows,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
