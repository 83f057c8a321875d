"""What reading label shards costs a segmenter's training step; ends in one JSON line.

The same steps of `fit` take their samples from image files and label shards, from image files with
masks that lie in memory, and from tensors in memory; they take turns, so that all see the same
machine.

    python benchmarks/segmenter_input.py --label-shards labels --dataset voc \\
        --data-root VOCdevkit/VOC2012 --split train_aug --checkpoint classifier.safetensors
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from torch.utils.data import Dataset as TorchDataset

from wsssfast.bench.arguments import data_arguments, opened
from wsssfast.bench.report import machine
from wsssfast.models.checkpoint import load_model
from wsssfast.models.segmenter import SegmenterConfig
from wsssfast.shards import LabelShards
from wsssfast.training.fit import Task, fit
from wsssfast.training.options import RunOptions, SegmenterOptions
from wsssfast.training.samples import Key, Sample
from wsssfast.training.segmenter import segmenter_task
from wsssfast.training.starts import from_classifier
from wsssfast.training.workers import Workers


class InMemory(TorchDataset[Sample]):
    """A few samples again and again, made before."""

    def __init__(self, samples: TorchDataset[Sample], length: int, kept: int) -> None:
        self.kept, self.length = [samples[0, n] for n in range(min(kept, length))], length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: Key) -> Sample:
        return self.kept[key[1] % len(self.kept)]


class MasksInMemory:
    """Label shards whose masks have all been read before."""

    def __init__(self, shards: LabelShards, ids: list[str]) -> None:
        self.identity, self.class_names = shards.identity, shards.class_names
        self.folder, self.ids = shards.folder, tuple(ids)
        self.masks = {image_id: shards.mask(image_id) for image_id in ids}

    def mask(self, image_id: str):
        """Of an image."""
        return self.masks[image_id]


class MasksFrom(MasksInMemory):
    """Label shards, of some images."""

    def __init__(self, shards: LabelShards, ids: list[str]) -> None:
        super().__init__(shards, [])
        self.shards, self.ids = shards, tuple(ids)

    def mask(self, image_id: str):
        """Of an image."""
        return self.shards.mask(image_id)


def seconds_of_steps(task: Task, options: SegmenterOptions, loader_workers: int) -> list[float]:
    """Of each step but the first two of a run."""
    found: list[float] = []
    last = None

    def report(told) -> None:
        nonlocal last
        now = time.perf_counter()
        if last is not None and told.scores is None:
            found.append(now - last)
        last = now

    run = RunOptions(loader_workers=loader_workers, log_steps=1)
    with tempfile.TemporaryDirectory() as folder:
        fit(task, options, Path(folder), run=run, report=report)
    return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    data_arguments(parser)
    parser.add_argument("--label-shards", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8, help="a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--loader-workers", type=int, default=1)
    args = parser.parse_args()
    shards, whole = LabelShards(args.label_shards), opened(args)
    count = args.steps * args.batch_size
    ids = [item.id for item in whole if item.id in set(shards.ids)][:count]
    wanted = set(ids)
    dataset = whole.subset(lambda n, item: item.id in wanted, whole.split)
    about, start = from_classifier(load_model(args.checkpoint))
    config = SegmenterConfig(dataset.class_names, **about)
    options = SegmenterOptions(epochs=1, batch_size=args.batch_size, crop=args.crop)

    def task(labels) -> Task:
        return segmenter_task(dataset, labels, config, options, Workers(), start)[1]

    in_memory = MasksInMemory(shards, ids)
    found: dict[str, list[float]] = {"shards": [], "masks in memory": [], "tensors in memory": []}
    for turn in range(args.turns):
        for name in sorted(found, reverse=bool(turn % 2)):
            some = task(in_memory)
            if name == "shards":
                some = task(MasksFrom(shards, ids))
            elif name == "tensors in memory":
                samples = InMemory(some.samples, len(dataset), 2 * args.batch_size)
                some = replace(some, samples=samples)
            found[name] += seconds_of_steps(some, options, args.loader_workers)
    steps = {name: median(seconds) for name, seconds in found.items()}
    print(json.dumps({
        "benchmark": "segmenter_input", **machine("cpu"), "arch": about["vit"].arch,
        "crop": args.crop, "batch_size": args.batch_size, "loader_workers": args.loader_workers,
        "steps": {name: len(seconds) for name, seconds in found.items()},
        "seconds_a_step": {name: round(value, 4) for name, value in steps.items()},
        "of_masks_in_memory": round(steps["shards"] / steps["masks in memory"], 4),
        "of_tensors_in_memory": round(steps["shards"] / steps["tensors in memory"], 4),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
