"""Images/s of `export-cams` against the loop of the field's scripts; ends in one JSON line.

The loop does what MCTformer's public script does, without its heatmaps and CRF: one image at a
time, each scale and its mirror image in a pass of their own, all layers' attention kept and
averaged afterwards, the maps of every class upsampled to the image's size and summed, those of the
image's classes scaled to [0, 1] and saved as a full-size `.npy`. Both read the same files; they
take turns by parts of the images, so that both see the same machine, and ratios are medians of the
parts' own. The floor is the network's plain forward of each image and its mirror image, without any
attention maps. `--every N` has the loop and the floor do every N-th image of each part alone, where
all would take hours.

    python benchmarks/export_speed.py --dataset voc --data-root VOCdevkit/VOC2012 --split val \\
        --checkpoint classifier.safetensors --images 500
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from wsssfast.bench.arguments import data_arguments, opened
from wsssfast.bench.forward import random_model
from wsssfast.bench.peers import plain_forward, stacked_forward
from wsssfast.bench.report import machine
from wsssfast.cam_options import CamOptions
from wsssfast.data import Dataset, Item
from wsssfast.export import export_cams
from wsssfast.models.checkpoint import load_model
from wsssfast.models.classifier import ClassTokenViT
from wsssfast.models.classifier_config import ClassifierConfig
from wsssfast.preprocess import resize, to_tensor
from wsssfast.shards.run import Filling


@torch.no_grad()
def script(model: ClassTokenViT, dataset: Dataset, options: CamOptions, out: Path) -> None:
    """The plain loop."""
    device = next(model.parameters()).device
    for item in dataset.items:
        image = dataset.load_image(item)
        size = (image.height, image.width)
        total = torch.zeros(model.num_classes, *size, device=device)
        for scale in options.scales:
            pixels = to_tensor([resize(image, scale, model.patch_size)], model.config)
            for mirrored in (False, True)[: 1 + options.flip]:
                inputs = (pixels.flip(-1) if mirrored else pixels).to(device)
                maps = stacked_forward(model, inputs, options.c2p_layers, options.p2p_layers)
                _, classes, h, w = maps.cam.shape
                cam = torch.relu(maps.cam).flatten(2) * maps.c2p
                cam = (cam @ maps.p2p.transpose(1, 2)).reshape(1, classes, h, w)
                full = F.interpolate(cam, size, mode="bilinear", align_corners=False)[0]
                total += full.flip(-1) if mirrored else full
        kept = {}
        for label in item.labels:
            low, high = total[label].min(), total[label].max()
            kept[label] = ((total[label] - low) / (high - low + 1e-8)).cpu().numpy()
        np.save(out / f"{item.id}.npy", kept, allow_pickle=True)


@torch.no_grad()
def floor(model: ClassTokenViT, dataset: Dataset, options: CamOptions, out: Path) -> None:
    """The forward passes alone, one image at a time, by scaled dot-product attention."""
    device = next(model.parameters()).device
    for item in dataset.items:
        image = dataset.load_image(item)
        for scale in options.scales:
            pixels = to_tensor([resize(image, scale, model.patch_size)], model.config).to(device)
            for _ in (False, True)[: 1 + options.flip]:
                plain_forward(model, pixels)


def seconds_of(work) -> tuple[float, int]:
    """Seconds of something that fills a folder, and the bytes that it leaves there."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        work(Path(folder))
        seconds = time.perf_counter() - start
        return seconds, sum(path.stat().st_size for path in Path(folder).iterdir())


def spread(ratios: np.ndarray) -> dict[str, float]:
    """Median, least and most over the parts."""
    return {
        name: round(float(value), 3)
        for name, value in (
            ("median", np.median(ratios)), ("least", ratios.min()), ("most", ratios.max())
        )
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    data_arguments(parser)
    parser.add_argument("--checkpoint", type=Path, help="else random weights of --arch")
    parser.add_argument("--arch", default="deit_small_patch16_224")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--scales", default="1.0")
    parser.add_argument("--batch-size", type=int, help="else auto")
    parser.add_argument("--every", type=int, default=1, help="images of which the peers do one")
    parser.add_argument("--parts", type=int, default=5, help="in which they take turns")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    dataset = opened(args)
    if args.checkpoint:
        model = load_model(args.checkpoint)
    else:
        model = random_model(ClassifierConfig.for_backbone(args.arch, dataset.class_names, 224))
    model.to(args.device)
    options = CamOptions(scales=tuple(map(float, args.scales.split(","))))
    items = dataset.items[: args.images]
    found: dict[str, list[tuple[float, int]]] = {"wsssfast": [], "script": [], "floor": []}
    images: dict[str, list[int]] = {name: [] for name in found}
    waiting: dict[str, float] = dict.fromkeys(("decode", "device", "write"), 0.0)

    def ours(out: Path, some: Dataset) -> None:
        told: dict[str, Any] = {}
        export_cams(
            model, some, out, options, batch_size=args.batch_size,
            filling=Filling(watch=lambda event, facts: told.update(facts)),
        )  # fmt: skip
        for what, share in told["waiting"].items():
            waiting[what] += share * told["seconds"]

    for part in range(args.parts):
        own = items[part :: args.parts]
        few = own[:: args.every]
        work: dict[str, tuple[tuple[Item, ...], Callable[[Path, Dataset], None]]] = {
            "wsssfast": (own, ours),
            "script": (few, lambda out, some: script(model, some, options, out)),
            "floor": (few, lambda out, some: floor(model, some, options, out)),
        }
        for name in sorted(work, reverse=bool(part % 2)):
            chosen, run = work[name]
            some = replace(dataset, items=chosen)
            found[name].append(seconds_of(lambda out, run=run, some=some: run(out, some)))
            images[name].append(len(chosen))
    seconds = sum(s for s, _ in found["wsssfast"])
    rates = {
        name: np.array([n / s for n, (s, _) in zip(images[name], runs, strict=True)])
        for name, runs in found.items()
    }
    print(json.dumps({
        "benchmark": "export_speed", **machine(args.device), "arch": model.config.arch,
        "dataset": args.dataset, "images": {name: sum(n) for name, n in images.items()},
        "scales": args.scales,
        "batch_size": args.batch_size or "auto",
        "images_per_second": {n: spread(r)["median"] for n, r in rates.items()},
        "times_the_script": spread(rates["wsssfast"] / rates["script"]),
        "of_the_floor": spread(rates["wsssfast"] / rates["floor"]),
        "waiting": {what: round(t / seconds, 4) for what, t in waiting.items()},
        "bytes_an_image": {n: sum(b for _, b in r) // sum(images[n]) for n, r in found.items()},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
