"""Score training-free ideas on images with masks: chosen on even images, told on odd ones.

    python benchmarks/training_free.py --checkpoint run/last.safetensors --dataset voc \\
        --data-root VOCdevkit/VOC2012 --split val --counts seed0.npz
    python benchmarks/training_free.py --summarise seed0.npz seed1.npz seed2.npz --json gains.json

The first counts for one classifier: of each idea, pixels by class and background score, of the even
and of the odd images of the sorted ids. The second sets several classifiers side by side: for each
idea its gain over the baseline on the odd images, every score at the threshold that is best on the
even ones, and the gains' spread over the classifiers. `--classes cat,dog` takes the mean over the
background and these alone.
"""

import argparse
import json
import statistics
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ideas import BASE, ESTIMATED, PAPER, backgrounds, ideas, see
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from wsssfast.bench.arguments import data_arguments, opened
from wsssfast.evaluate import CamScorer, Truth
from wsssfast.evaluate.scores import scores
from wsssfast.models.checkpoint import load_model
from wsssfast.models.classifier import ClassTokenViT
from wsssfast.preprocess import normalise
from wsssfast.shards.reader import full_size

ESTIMATE_FOR = (BASE, PAPER, "modulate: tokens, ratio 0.3, geometric")


@dataclass(frozen=True)
class Counted:
    """What one classifier's CAMs of an idea were counted to.

    Attributes:
        names: of the classes, background first.
        truth: int64 [2, C + 1], of the even and of the odd images, as `CamScorer.truth`.
        seen: idea -> int64 [2, 3, C, levels], as `CamScorer.seen`.
    """

    names: tuple[str, ...]
    truth: NDArray[np.int64]
    seen: dict[str, NDArray[np.int64]]

    def save(self, path: Path) -> None:
        """As arrays alone."""
        ideas, seen = np.array(list(self.seen)), np.stack(list(self.seen.values()))
        np.savez_compressed(
            path, names=np.array(self.names), truth=self.truth, ideas=ideas, seen=seen
        )

    @classmethod
    def load(cls, path: Path) -> "Counted":
        """From what `save` wrote."""
        with np.load(path, allow_pickle=False) as found:
            seen = dict(zip(map(str, found["ideas"]), found["seen"], strict=True))
            return cls(tuple(map(str, found["names"])), found["truth"], seen)

    def curves(self, idea: str, classes: Collection[str]) -> NDArray[np.float64]:
        """[2, thresholds] mIoU in percent over background and classes; all where none is named."""
        scorer = CamScorer(self.names[1:])
        found = np.zeros((2, len(scorer.thresholds)))
        for half in range(2):
            scorer.truth, scorer.seen = self.truth[half], self.seen[idea][half]
            for n in range(found.shape[1]):
                iou = scores(*scorer.counts(n), names=self.names)["per_class"]
                kept = [v for k, v in iou.items() if not classes or k in (*classes, self.names[0])]
                found[half, n] = 100 * statistics.mean(kept)
        return found


def count(model: ClassTokenViT, args: argparse.Namespace) -> Counted:
    """Every idea over the split."""
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
    truths = np.stack([half.truth for half in scorers[BASE]])
    seen_by = {name: np.stack([half.seen for half in both]) for name, both in scorers.items()}
    return Counted(scorers[BASE][0].class_names, truths, seen_by)


def gains(runs: list[Counted], classes: Collection[str]) -> list[dict[str, Any]]:
    """Of each idea, over each classifier's own baseline; the best first."""
    rows = []
    bases = [run.curves(BASE, classes) for run in runs]
    for name in runs[0].seen:
        found = [run.curves(name, classes) for run in runs]
        rows.append(_row(name, [on_odd(curves) for curves in found], found, bases))
        if name.startswith("background"):
            told = f"{name}, no mask seen"
            rows.append(_row(told, [c[1, round(100 * ESTIMATED)] for c in found], found, bases))
    return sorted(rows, key=lambda row: -row["gain"])


def on_odd(curves: NDArray[np.float64]) -> float:
    """The odd images' mIoU at the even images' best threshold."""
    return float(curves[1, np.argmax(curves[0])])


def _row(
    name: str,
    odd: list[float],
    curves: list[NDArray[np.float64]],
    bases: list[NDArray[np.float64]],
) -> dict[str, Any]:
    gained = [value - on_odd(base) for value, base in zip(odd, bases, strict=True)]
    even = [float(c[0].max() - base[0].max()) for c, base in zip(curves, bases, strict=True)]
    return {
        "idea": name,
        "odd": [round(value, 2) for value in odd],
        "mean": round(statistics.mean(odd), 2),
        "gain": round(statistics.mean(gained), 2),
        "spread": round(statistics.stdev(gained), 2) if len(gained) > 1 else None,
        "least": round(min(gained), 2),
        "even": round(statistics.mean(even), 2),
    }


def table_of(rows: list[dict[str, Any]], title: str) -> Table:
    """Gains for a terminal."""
    table = Table(title=title, title_justify="left")
    for column in ("idea", "mean", "gain", "spread", "least gain", "gain on even"):
        table.add_column(column, justify="left" if column == "idea" else "right")
    for row in rows:
        spread = "" if row["spread"] is None else f"{row['spread']:.1f}"
        signed = [f"{row[key]:+.1f}" for key in ("gain", "least", "even")]
        table.add_row(row["idea"], f"{row['mean']:.1f}", signed[0], spread, *signed[1:])
    return table


def main() -> None:
    """Count for one classifier, or summarise several."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    data_arguments(parser)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--counts", type=Path, default=Path("counts.npz"))
    parser.add_argument("--summarise", type=Path, nargs="+", default=[])
    parser.add_argument("--classes", type=lambda text: text.split(","), default=[])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not args.summarise:
        begin = time.perf_counter()
        count(load_model(args.checkpoint).eval(), args).save(args.counts)
        print(f"{args.counts}: {time.perf_counter() - begin:.0f} s")
    rows = gains([Counted.load(path) for path in args.summarise or [args.counts]], args.classes)
    if args.json:
        told = {"benchmark": "training_free", "classes": args.classes, "ideas": rows}
        args.json.write_text(json.dumps(told, indent=1))
    title = f"{len(args.summarise) or 1} classifiers, mIoU in % of the odd images"
    Console(width=110).print(table_of(rows, title))


if __name__ == "__main__":
    main()
