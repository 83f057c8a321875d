"""The pipeline on the embedded data set: train a tiny classifier, export CAMs, score the stages."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsssfast.compute import CamOptions
from wsssfast.data.synthetic import open_synthetic
from wsssfast.evaluate import evaluate_cams
from wsssfast.export import export_cams
from wsssfast.kernels import STAGES
from wsssfast.models.checkpoint import save_model
from wsssfast.models.classifier import ClassifierConfig
from wsssfast.shards import open_shards
from wsssfast.train import TrainOptions, train_classifier

TRAIN, VAL = "train:600", "val:200"


@dataclass(frozen=True)
class DemoResult:
    """What the demo leaves.

    Attributes:
        stages: stage -> mIoU (a fraction) at its best threshold, on unseen scenes.
        thresholds: stage -> that threshold.
        seconds: wall time of each step.
        report: file of all scores.
    """

    stages: dict[str, float]
    thresholds: dict[str, float]
    seconds: dict[str, float]
    report: Path

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {**vars(self), "report": str(self.report)}


def run_demo(
    out: Path, seed: int, progress: Callable[[str], None] = lambda text: None
) -> DemoResult:
    """Run everything into a folder; the same seed gives the same scores on the same machine.

    Args:
        out: folder of the results; what a former demo left there is replaced.
        seed: of the classifier's training.
        progress: called with a line of text now and then.
    """
    out.mkdir(parents=True, exist_ok=True)
    scenes, unseen = open_synthetic(TRAIN), open_synthetic(VAL)
    config = ClassifierConfig.for_backbone(
        "deit_tiny_patch16_224", scenes.class_names, 128, embed_dim=128, depth=4, num_heads=4
    )
    options = TrainOptions(epochs=12, batch_size=8, rate=1.5e-3, least_area=0.5, seed=seed)
    steps = options.epochs * (len(scenes) // options.batch_size)
    seconds: dict[str, float] = {}
    losses: list[float] = []

    def after_step(step: int, loss: float) -> None:
        losses.append(loss)
        if (step + 1) % 100 == 0:
            mean = sum(losses[-100:]) / 100
            progress(f"  step {step + 1} of {steps}: loss {mean:.3f}")

    progress(f"train a tiny classifier on the labels of {len(scenes)} scenes")
    start = time.perf_counter()
    model = train_classifier(scenes, config, options, after_step)
    save_model(model, out / "classifier.safetensors")
    seconds["train"] = time.perf_counter() - start
    progress(f"export the CAMs of {len(unseen)} unseen scenes, every stage")
    start = time.perf_counter()
    export_cams(model, unseen, out / "demo-cams", CamOptions(stages=STAGES), overwrite=True)
    seconds["export"] = time.perf_counter() - start
    progress("score them against the masks")
    start = time.perf_counter()
    results, _ = evaluate_cams(open_shards(out / "demo-cams"), unseen, STAGES)
    seconds["evaluate"] = time.perf_counter() - start
    report = out / "report.json"
    result = DemoResult(
        stages={stage: found["miou"] for stage, found in results.items()},
        thresholds={stage: found["threshold"] for stage, found in results.items()},
        seconds=seconds,
        report=report,
    )
    report.write_text(json.dumps({**result.to_json(), "scores": results}, indent=1) + "\n")
    return result
