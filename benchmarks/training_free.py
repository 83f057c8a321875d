"""Score training-free ideas on images with masks: chosen on even images, told on odd ones.

    python benchmarks/training_free.py --checkpoint run/last.safetensors --dataset voc \\
        --data-root VOCdevkit/VOC2012 --split val --json seed0.json
    python benchmarks/training_free.py --summarise seed0.json seed1.json seed2.json

The first scores one classifier: for each idea the mIoU by background score, on the even and on the
odd images of the sorted ids. The second sets several classifiers side by side: for each idea its
gain over the baseline on the odd images, every score at the threshold that is best on the even
ones, and the gains' spread over the classifiers.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ideas import BASE, ESTIMATED, PAPER, backgrounds, ideas, see
from rich.console import Console
from rich.progress import track
from rich.table import Table

from wsssfast.bench.arguments import data_arguments, opened
from wsssfast.bench.report import machine
from wsssfast.evaluate import CamScorer, Truth
from wsssfast.models.checkpoint import load_model, weights_hash
from wsssfast.models.classifier import ClassTokenViT
from wsssfast.preprocess import normalise
from wsssfast.shards.reader import full_size

ESTIMATE_FOR = (BASE, PAPER, "propagate: geometric by token similarity")
HALVES = ("even", "odd", "all")
Curves = dict[str, list[float]]  # half -> mIoU by threshold, percent


def score(model: ClassTokenViT, args: argparse.Namespace) -> dict[str, Curves]:
    """Idea -> curves over the split."""
    dataset = opened(args)
    items = sorted(dataset.items, key=lambda item: item.id)[:: args.every]
    scorers: dict[str, list[CamScorer]] = {}
    for n, item in enumerate(track(items, "images", console=Console(stderr=True))):
        mask = dataset.load_mask(item)
        if mask is None or not item.labels:
            continue
        pixels = np.array(dataset.load_image(item))
        image = normalise(torch.from_numpy(pixels)[None], model.config)
        seen = see(model, torch.cat([image, image.flip(-1)]), item.labels)
        truth = Truth.of(mask, np.array(item.labels), len(dataset.class_names))
        for name, maps in ideas(seen):
            plain, mirrored = maps.reshape(2, -1, *seen.grid)
            grid = (plain + mirrored.flip(-1)).float().numpy()
            full = full_size([grid], pixels.shape[:2], 1e-12)
            scored = [(name, full)]
            if name in ESTIMATE_FOR:
                scored += [(f"background: {how}, {name}", own) for how, own in backgrounds(full)]
            for told, found in scored:
                both = scorers.setdefault(told, [CamScorer(dataset.class_names) for _ in "eo"])
                both[n % 2].add_truth(truth, found)
    return {name: _curves(even, odd, dataset.class_names) for name, (even, odd) in scorers.items()}


def _curves(even: CamScorer, odd: CamScorer, names: tuple[str, ...]) -> Curves:
    whole = CamScorer(names)
    whole.truth, whole.seen = even.truth + odd.truth, even.seen + odd.seen
    found = zip(HALVES, (even, odd, whole), strict=True)
    return {half: [100 * m for _, m in scorer.result()["curve"]] for half, scorer in found}


def on_odd(curves: Curves) -> float:
    """The odd images' mIoU at the even images' best threshold."""
    return curves["odd"][int(np.argmax(curves["even"]))]


def estimated(curves: Curves) -> float:
    """The odd images' mIoU at the estimated backgrounds, none chosen on masks."""
    return curves["odd"][round(100 * ESTIMATED)]


def summarise(runs: list[dict[str, Any]]) -> Table:
    """Gains over each classifier's own baseline."""
    table = Table(title=f"{len(runs)} classifiers, mIoU of the odd images", title_justify="left")
    for column in ("idea", "mean", "gain", "spread", "least gain", "gain on even"):
        table.add_column(column, justify="left" if column == "idea" else "right")
    rows = []
    for name in runs[0]["ideas"]:
        pairs = [(run["ideas"][name], run["ideas"][BASE]) for run in runs]
        gains = [on_odd(found) - on_odd(base) for found, base in pairs]
        even = statistics.mean(max(f["even"]) - max(base["even"]) for f, base in pairs)
        spread = statistics.stdev(gains) if len(gains) > 1 else float("nan")
        mean = statistics.mean(on_odd(found) for found, _ in pairs)
        rows.append((name, mean, statistics.mean(gains), spread, min(gains), even))
        if name.startswith("background"):
            gains = [estimated(found) - on_odd(base) for found, base in pairs]
            spread = statistics.stdev(gains) if len(gains) > 1 else float("nan")
            mean = statistics.mean(estimated(found) for found, _ in pairs)
            told = f"{name}, no mask seen"
            rows.append((told, mean, statistics.mean(gains), spread, min(gains), float("nan")))
    for name, mean, *rest in sorted(rows, key=lambda row: -row[2]):
        table.add_row(name, f"{mean:.1f}", *(f"{value:+.1f}" for value in rest))
    return table


def main() -> None:
    """Score one classifier, or summarise several."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    data_arguments(parser)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--summarise", type=Path, nargs="+", default=[])
    args = parser.parse_args()
    runs = [json.loads(path.read_text()) for path in args.summarise]
    if not runs:
        model, begin = load_model(args.checkpoint).eval(), time.perf_counter()
        found = score(model, args)
        runs = [{"weights": weights_hash(model), "machine": machine("cpu"), "split": args.split,
                 "seconds": round(time.perf_counter() - begin), "ideas": found}]  # fmt: skip
        if args.json:
            args.json.write_text(json.dumps(runs[0]))
    Console(width=110).print(summarise(runs))


if __name__ == "__main__":
    main()
