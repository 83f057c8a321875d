"""Where the time of `export-cams` goes: PyTorch's profiler over an export; ends in one JSON line.

Shares are of the wall-clock time of the export: the operations of the network and the refinement by
kind, the waits for decoding and writing, and what is left (Python, small operations' overhead).

    python benchmarks/export_profile.py --dataset voc --data-root VOCdevkit/VOC2012 --split val \\
        --checkpoint classifier.safetensors --images 40
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from wsssfast.bench.arguments import data_arguments, opened
from wsssfast.bench.forward import random_model
from wsssfast.bench.report import machine
from wsssfast.cam_options import CamOptions
from wsssfast.export import export_cams
from wsssfast.models.checkpoint import load_model
from wsssfast.models.classifier_config import ClassifierConfig
from wsssfast.shards.run import Filling

KINDS = {  # of the table: operators by their own time
    "linear layers": ("addmm", "mm", "linear"),
    "attention products": ("bmm", "baddbmm"),
    "softmax": ("softmax",),
    "gelu": ("gelu",),
    "layer norm": ("layer_norm",),
    "convolutions": ("conv", "mkldnn"),
    "ranking": ("topk", "sort", "kthvalue"),
    "copies": ("copy_", "cat", "clone", "stack"),
}


def kind_of(name: str) -> str:
    plain = name.removeprefix("aten::").removeprefix("_")
    for kind, starts in KINDS.items():
        if plain.startswith(starts) or plain in starts:
            return kind
    return "other operations"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    data_arguments(parser)
    parser.add_argument("--checkpoint", type=Path, help="else random weights of --arch")
    parser.add_argument("--arch", default="deit_small_patch16_224")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--scales", default="1.0")
    args = parser.parse_args()
    dataset = opened(args)
    dataset = replace(dataset, items=dataset.items[: args.images])
    if args.checkpoint:
        model = load_model(args.checkpoint)
    else:
        model = random_model(ClassifierConfig.for_backbone(args.arch, dataset.class_names, 224))
    options = CamOptions(scales=tuple(map(float, args.scales.split(","))))
    told: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        profile(activities=[ProfilerActivity.CPU]) as profiler,
    ):
        export_cams(
            model,
            dataset,
            Path(folder),
            options,
            filling=Filling(watch=lambda event, facts: told.update(facts)),
        )
    seconds = told["seconds"]
    shares: dict[str, float] = {}
    for event in profiler.key_averages():
        kind = kind_of(event.key)
        shares[kind] = shares.get(kind, 0.0) + event.self_cpu_time_total / 1e6 / seconds
    shares |= {f"waiting: {what}": told["waiting"][what] for what in ("decode", "write")}
    shares["the rest"] = 1 - sum(shares.values())
    print(json.dumps({
        "benchmark": "export_profile", **machine("cpu"), "arch": model.config.arch,
        "dataset": args.dataset, "images": len(dataset), "scales": args.scales,
        "milliseconds_an_image": round(1000 * seconds / len(dataset), 1),
        "shares": {kind: round(share, 4) for kind, share in sorted(shares.items())},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
