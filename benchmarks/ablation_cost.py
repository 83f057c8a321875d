"""Seconds of scoring a grid of settings against one plain export; ends in one JSON line.

`ablate` of 5 ratios x 7 alphas and `export-cams` of the final stage take turns by parts of the
same images; ratios are medians of the parts' own.

    python benchmarks/ablation_cost.py --dataset voc --data-root VOCdevkit/VOC2012 --split val \\
        --checkpoint classifier.safetensors --images 200
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from wsssfast.ablation import ablate, settings_of
from wsssfast.bench.arguments import data_arguments, opened
from wsssfast.bench.report import machine
from wsssfast.cam_options import CamOptions
from wsssfast.data import Dataset
from wsssfast.export import export_cams
from wsssfast.models.checkpoint import load_model

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5)
ALPHAS = (0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    data_arguments(parser)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--parts", type=int, default=5, help="in which they take turns")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    dataset, model = opened(args), load_model(args.checkpoint).to(args.device)
    options = CamOptions()
    settings = settings_of(
        options, stages=["final"], propagations=["gather"], related_by=["attention"],
        ratios=RATIOS, alphas=ALPHAS, grid=True,
    )  # fmt: skip
    work: dict[str, Callable[[Path, Dataset], object]] = {
        "export": lambda out, some: export_cams(model, some, out, options),
        "ablate": lambda out, some: ablate(model, some, out, settings, options),
    }
    masked = [item for item in dataset.items if item.mask is not None][: args.images]
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for part in range(args.parts):
        some = replace(dataset, items=tuple(masked[part :: args.parts]))
        for name in sorted(work, reverse=bool(part % 2)):
            with tempfile.TemporaryDirectory() as folder:
                begin = time.perf_counter()
                work[name](Path(folder), some)
                seconds[name].append(time.perf_counter() - begin)
    times = [a / e for a, e in zip(seconds["ablate"], seconds["export"], strict=True)]
    print(json.dumps({
        "benchmark": "ablation_cost", **machine(args.device), "arch": model.config.arch,
        "images": len(masked), "settings": len(settings),
        "seconds": {name: round(sum(found), 2) for name, found in seconds.items()},
        "times_the_export": round(statistics.median(times), 3),
        "least": round(min(times), 3), "most": round(max(times), 3),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
