"""Training images/s of `fit` against a bare training loop; ends in one JSON line.

Both take DeiT-Tiny with 20 class tokens at 224 px, batch 64, AdamW, the same loader processes and
the same transforms; the bare loop has timm's own stochastic depth, and no logs, state, scores or
checks. They take turns, so that both see the same machine.

    python benchmarks/train_speed.py --dataset voc --data-root VOCdevkit/VOC2012 --split val
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch.utils.data import DataLoader

from wsssfast.bench.arguments import data_arguments, opened
from wsssfast.data import Dataset
from wsssfast.models.classifier import ClassTokenViT
from wsssfast.models.classifier_config import ClassifierConfig
from wsssfast.models.losses import classifier_loss
from wsssfast.training.classifier import train_classifier
from wsssfast.training.options import ClassifierOptions, RunOptions
from wsssfast.training.samples import ClassifierSamples, StepKeys, collate


def bare(dataset: Dataset, config: ClassifierConfig, options: ClassifierOptions, workers: int):
    """Seconds of each step of a loop that does nothing but train."""
    drop = {**config.arch_options, "drop_path_rate": options.drop_path}
    model = ClassTokenViT(replace(config, arch_options=drop)).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
    steps = len(dataset) // options.batch_size
    loader = DataLoader(
        ClassifierSamples(dataset, config, options, 12),
        batch_sampler=StepKeys(len(dataset), options.batch_size, 1, 0, 1, 0, range(steps)),
        num_workers=workers,
        collate_fn=collate,
    )
    seconds, start = [], time.perf_counter()
    for batch in loader:
        loss = classifier_loss(model(batch.image), batch.target)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        now = time.perf_counter()
        seconds.append(now - start)
        start = now
    return seconds[1:]  # the first waits for the loader


def ours(dataset: Dataset, config: ClassifierConfig, options: ClassifierOptions, workers: int):
    """Seconds of each step of `train_classifier`."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        run = RunOptions(loader_workers=workers, log_steps=1)
        last = None

        def report(told) -> None:
            nonlocal last
            now = time.perf_counter()
            if last is not None and told.scores is None:
                seconds.append(now - last)
            last = now

        train_classifier(dataset, config, options, Path(folder), run=run, report=report)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    data_arguments(parser, "synthetic")
    parser.add_argument("--steps", type=int, default=6, help="a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--loader-workers", type=int, default=2)
    args = parser.parse_args()
    whole = opened(args)
    count = args.steps * args.batch_size
    dataset = whole.subset(lambda n, item: n < count, whole.split)
    names = tuple(f"class{n}" for n in range(max(20, len(whole.class_names))))
    dataset = replace(dataset, class_names=names)
    config = ClassifierConfig.for_backbone("deit_tiny_patch16_224", names, args.image_size)
    options = ClassifierOptions(epochs=1, batch_size=args.batch_size, warmup_epochs=0.1)
    found: dict[str, list[float]] = {"bare": [], "wsssfast": []}
    for _ in range(args.turns):
        for name, loop in (("bare", bare), ("wsssfast", ours)):
            found[name] += loop(dataset, config, options, args.loader_workers)
    speed = {name: args.batch_size / median(seconds) for name, seconds in found.items()}
    print(
        json.dumps(
            {
                "benchmark": "train_speed",
                "images_per_second": {name: round(value, 2) for name, value in speed.items()},
                "ratio": round(speed["wsssfast"] / speed["bare"], 3),
                "steps": {name: len(seconds) for name, seconds in found.items()},
                "batch_size": args.batch_size,
                "image_size": args.image_size,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
