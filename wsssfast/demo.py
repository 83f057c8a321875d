"""The pipeline on the embedded data set, from image labels to masks of unseen scenes."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wsssfast.cam_options import CamOptions
from wsssfast.data.synthetic import open_synthetic
from wsssfast.errors import WsssError, listing
from wsssfast.evaluate import evaluate_cams, evaluate_labels
from wsssfast.evaluate.segmentation import evaluate_segmentation
from wsssfast.export import export_cams
from wsssfast.files import output_folder, publish
from wsssfast.kernels import STAGES
from wsssfast.labels.options import TEST_CRF, LabelOptions
from wsssfast.labels.run import export_labels
from wsssfast.labels.walk import walk_by
from wsssfast.models.affinity import AffinityConfig
from wsssfast.models.classifier_config import ClassifierConfig
from wsssfast.models.segmenter import SegmenterConfig
from wsssfast.predict import PredictOptions, predict
from wsssfast.report import write_report
from wsssfast.report.segmentation import write_segmentation_report
from wsssfast.segment import SegmentOptions
from wsssfast.shards.label_shards import LabelShards
from wsssfast.shards.reader import CamShards
from wsssfast.torchrun import own_cores
from wsssfast.training.affinity_run import CELLS, label_cells, train_affinity
from wsssfast.training.classifier import train_classifier
from wsssfast.training.fit import Report
from wsssfast.training.options import (
    AffinityOptions,
    ClassifierOptions,
    RunOptions,
    SegmenterOptions,
)
from wsssfast.training.segmenter import train_segmenter
from wsssfast.training.starts import from_classifier
from wsssfast.versions import versions

TRAIN, VAL = "train:600", "val:200"
CLASSIFIER = ClassifierOptions(
    epochs=30, batch_size=16, rate=1.5e-3, rate_batch=16, warmup_epochs=1.0, final_rate=0.0,
    least_area=0.5, jitter=0.0, drop_path=0.0,
)  # fmt: skip
# at twice their size: a patch of 16 pixels is a third of a small shape
SEGMENTER = SegmenterOptions(
    epochs=12, batch_size=16, rate=1e-3, rate_batch=16, new_rate=1.0, curve="cosine",
    final_rate=0.0, crop=192, least_scale=1.5, most_scale=2.0, jitter=0.0, drop_path=0.0,
)  # fmt: skip
# the paper's CRF, as wide for a scene as it is for a photograph of four times the side
PREDICT = PredictOptions(
    SegmentOptions((2.0,), "max", flip=True), replace(TEST_CRF, gaussian_sxy=1, bilateral_sxy=21)
)
# Eq. 6 to the letter: what propagates best on a network trained for minutes (method §4)
CAMS = CamOptions(stages=STAGES, scales=(1.0, 1.5), propagation="scatter")
AFFINITY = AffinityOptions(epochs=3, batch_size=16, rate_batch=16, crop=128, jitter=0.0)
_BAND = 0.1  # of scores on either side of the threshold, in which cells are ignored
# a walk goes as far as the root of its steps, and scenes are a quarter of a photograph's side
_STEPS = 8
_FOLDERS = (
    "classifier",
    "cams-train",
    "cams-val",
    "labels",
    "affinity",
    "walked",
    "segmenter",
    "masks",
)
_MARK = ".wsssfast-demo"
_STEPS_IN_ALL = 9
_RUN = RunOptions(loader_workers=0)


@dataclass(frozen=True)
class DemoResult:
    """What the demo leaves.

    Attributes:
        stages: stage -> mIoU (a fraction) at its best threshold, on unseen scenes.
        thresholds: stage -> that threshold.
        labels: mIoU of the pseudo-labels of the training scenes, at the threshold that suits their
            masks best.
        walked: mIoU of those that a walk over affinities made of them.
        segmenter: mIoU on unseen scenes of a segmenter trained on the latter alone.
        seconds: wall time of each step.
        report: the HTML report.
    """

    stages: dict[str, float]
    thresholds: dict[str, float]
    labels: float
    walked: float
    segmenter: float
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
        out: folder of the results; a demo of this seed that was interrupted there is continued,
            what a finished one left is replaced.
        seed: of everything that is trained.
        progress: called with a line of text now and then.
    """
    _make_ready(out, seed)
    scenes, unseen = open_synthetic(TRAIN), open_synthetic(VAL)
    config = ClassifierConfig.for_backbone(
        "deit_tiny_patch16_224", scenes.class_names, 128, embed_dim=128, depth=4, num_heads=4
    )
    steps = _Steps(progress)
    with steps.of(f"train a tiny classifier on the labels of {len(scenes)} scenes", "train"):
        model, _ = train_classifier(
            scenes, config, replace(CLASSIFIER, seed=seed), out / "classifier", run=_RUN,
            report=steps.training,
        )  # fmt: skip
    with steps.of(f"export the CAMs of {len(unseen)} unseen scenes, every stage", "export"):
        export_cams(model, unseen, out / "cams-val", CAMS)
    with steps.of("score them against the masks", "evaluate"):
        scores, _ = evaluate_cams(CamShards(out / "cams-val"), unseen, STAGES)
    with steps.of("label the training scenes with their final CAM", "label"):
        export_cams(model, scenes, out / "cams-train", replace(CAMS, stages=("final",)))
        cams = CamShards(out / "cams-train")
        best, _ = evaluate_cams(cams, scenes, ("final",))
        background = (best["final"]["threshold"],)
        export_labels(cams, out / "labels", LabelOptions("final", background))
        labelled, _ = evaluate_labels(LabelShards(out / "labels"), scenes)
    with steps.of("learn from them which near cells belong together", "affinity"):
        sure = (max(0.0, background[0] - _BAND), min(1.0, background[0] + _BAND))
        label_cells(cams, scenes, out / "affinity", LabelOptions("final", sure))
        about, start = from_classifier(model)
        train_affinity(
            scenes, LabelShards(out / "affinity" / CELLS),
            AffinityConfig(scenes.class_names, **about), replace(AFFINITY, seed=seed),
            out / "affinity", start=start, run=_RUN,
        )  # fmt: skip
    with steps.of("let the scores walk over these affinities", "walk"):
        network = out / "affinity" / "last.safetensors"
        walk = walk_by(network, scenes.class_names, beta=8, steps=_STEPS)
        export_labels(
            cams, out / "walked", LabelOptions("final", background, refine="affinity", walk=walk),
            scenes, network=network,
        )  # fmt: skip
        better = LabelShards(out / "walked")
        walked, _ = evaluate_labels(better, scenes)
    with steps.of("train a segmenter on these labels", "segmenter"):
        train_segmenter(
            scenes, better, SegmenterConfig(scenes.class_names, **about),
            replace(SEGMENTER, seed=seed), out / "segmenter", start=start, run=_RUN,
            report=steps.training,
        )  # fmt: skip
    with steps.of(f"segment {len(unseen)} unseen scenes with it", "predict"):
        predict(
            out / "segmenter" / "last.safetensors", unseen, out / "masks", PREDICT,
            workers=own_cores(),
        )  # fmt: skip
        masks, images, failed = evaluate_segmentation(LabelShards(out / "masks"), unseen)
    with steps.of("write the report", "report"):
        report = write_report(
            out / "report.html", CamShards(out / "cams-val"), unseen, scores=scores, model=model,
            training=out / "classifier",
        )  # fmt: skip
        write_segmentation_report(
            out / "masks.html", LabelShards(out / "masks"), unseen, masks, images, failed, 12
        )
    result = DemoResult(
        stages={stage: found["miou"] for stage, found in scores.items()},
        thresholds={stage: found["threshold"] for stage, found in scores.items()},
        labels=labelled["miou"],
        walked=walked["miou"],
        segmenter=masks["miou"],
        seconds=steps.seconds,
        report=report.path,
    )
    text = json.dumps({**result.to_json(), "scores": scores}, indent=1) + "\n"
    publish(out / "report.json", lambda path: path.write_text(text, encoding="utf-8"))
    return result


def _make_ready(out: Path, seed: int) -> None:
    """Remove what a finished demo left, or one of another seed or version; nobody else's files.

    Raises:
        WsssError: folders of these names that no demo made.
    """
    output_folder(out, "the demo")
    mark, end = out / _MARK, out / "report.json"
    told = f"made by wsssfast demo, seed {seed}, {versions('torchvision')}\n"
    if not end.exists() and mark.is_file() and mark.read_text(encoding="utf-8") == told:
        return
    there = [name for name in _FOLDERS if (out / name).exists()]
    if there and not mark.exists():
        raise WsssError(
            f"Expected a new folder or one of a former demo, found {listing(there)} in {out}.",
            "Choose another --out.",
        )
    for name in there:
        shutil.rmtree(out / name)
    end.unlink(missing_ok=True)
    mark.write_text(told, encoding="utf-8")


class _Steps:
    """Says what is being done, and remembers how long it took."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def of(self, text: str, name: str) -> Iterator[None]:
        """One step of the pipeline."""
        self.progress(f"{len(self.seconds) + 1} of {_STEPS_IN_ALL}: {text}")
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    def training(self, told: Report) -> None:
        """A line after each epoch."""
        if told.scores is not None:
            self.progress(
                f"  step {told.step} of {told.steps}: loss {told.loss:.3f}, "
                f"{told.images_per_second:.0f} images/s, {told.seconds_left:.0f} s left"
            )
