"""Write the report of a run."""

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsssfast.data.dataset import Dataset
from wsssfast.errors import BadFile, WsssError
from wsssfast.evaluate import Masks, evaluate_cams
from wsssfast.export import require_classes
from wsssfast.kernels import STAGES
from wsssfast.models.checkpoint import weights_hash
from wsssfast.models.classifier import ClassTokenViT
from wsssfast.report.charts import Chart, Series, line_chart
from wsssfast.report.choose import MOST_RANKED, choose, require_ids
from wsssfast.report.facts import option_facts, run_facts
from wsssfast.report.gallery import MOST_CLASSES, Sources, exhibit
from wsssfast.report.labels import before_refinement, label_scores
from wsssfast.report.page import write_page
from wsssfast.report.scores import (
    BASELINE,
    PUBLISHED,
    StageScore,
    class_rows,
    parse_scores,
    sweep_rows,
)
from wsssfast.report.training import training_charts
from wsssfast.shards.label_shards import LabelShards
from wsssfast.shards.reader import CamShards


@dataclass(frozen=True)
class ReportSummary:
    """What a report holds.

    Attributes:
        path: of the file.
        bytes: its size.
        images: ids of the images shown.
        failed: id -> reason of what could not be read.
    """

    path: Path
    bytes: int
    images: tuple[str, ...]
    failed: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {**vars(self), "path": str(self.path), "images": list(self.images)}


def write_report(
    out: Path,
    shards: CamShards,
    dataset: Dataset,
    *,
    scores: Mapping[str, Any] | None = None,
    model: ClassTokenViT | None = None,
    labels: LabelShards | None = None,
    training: Path | None = None,
    images: int = 8,
    ids: Sequence[str] = (),
    date: str | None = None,
    progress: Callable[[int], None] = lambda images: None,
) -> ReportSummary:
    """Write one self-contained HTML file; equal input gives an equal file.

    Args:
        out: the file; its folder is made.
        shards: the CAMs to show.
        dataset: that the shards were exported from.
        scores: stage -> scores of the shards, as `evaluate_cams` gives them; measured where None.
        model: that made the shards, in evaluation mode, for the attention; None: it is left out.
        labels: pseudo-labels to show; None: the thresholded maps.
        training: folder of the training run, for its curves; None: they are left out.
        images: how many to show.
        ids: which images to show instead.
        date: to print; today where None.
        progress: called with 1 for each image that is scored.

    Raises:
        WsssError: shards, scores, model or ids that do not belong together, or no training log.
    """
    if out.is_dir():
        raise WsssError(f"Expected a file for the report, found a folder at {out}.")
    Masks(shards, dataset, progress).require_all()
    if labels is not None and labels.class_names != shards.class_names:
        raise WsssError(
            f"Expected label shards of the classes of {shards.folder}, found others in "
            f"{labels.folder}."
        )
    require_ids(shards, ids)
    if model is not None:
        _require_model(model, shards, dataset)
    training_curves = training_charts(training) if training else []
    out.parent.mkdir(parents=True, exist_ok=True)
    failed = dict(shards.failed)
    if scores is None:
        scores = _measure(shards, dataset, progress, failed)
    measured = parse_scores(scores, shards.class_names) if scores else {}
    if not measured.keys() <= set(shards.stages) or any(
        score.images > len(shards) for score in measured.values()
    ):
        raise WsssError(
            f"Expected scores of the shards in {shards.folder}, found ones of other stages or of "
            "more images.",
            "Make them with `wsssfast evaluate cams --json`.",
        )
    stages = tuple(stage for stage in STAGES if stage in shards.stages)
    stage = stages[-1]
    threshold = measured[stage].threshold if stage in measured else None
    before = before_refinement(shards, labels) if labels is not None else None
    sources = Sources(shards, dataset, stages, stage, threshold, labels, model, before)
    label_rows = label_scores(shards, labels, dataset, failed) if labels is not None else []
    chosen = choose(shards, dataset, stage, threshold, images, ids, failed)
    exhibits = [found for choice in chosen if (found := exhibit(sources, choice, failed))]
    scored = max((score.images for score in measured.values()), default=0)
    date = date or datetime.date.today().isoformat()
    write_page(
        out,
        "page.html",
        title=f"wsssfast report: {dataset.name}",
        facts=run_facts(shards, dataset, model, scored, date),
        options=option_facts(shards),
        stages=STAGES,
        measured=measured,
        published=PUBLISHED,
        sweep=_sweep(measured) if measured else None,
        sweep_rows=sweep_rows(measured),
        baseline=BASELINE,
        compared=stage,
        label_rows=label_rows,
        class_rows=class_rows(measured, shards.class_names, BASELINE, stage),
        exhibits=exhibits,
        asked=bool(ids),
        with_model=model is not None,
        most_ranked=MOST_RANKED,
        most_classes=MOST_CLASSES,
        training=training_curves,
        failed=list(failed.items()),
    )
    shown = tuple(found.choice.id for found in exhibits)
    return ReportSummary(out, out.stat().st_size, shown, failed)


def _require_model(model: ClassTokenViT, shards: CamShards, dataset: Dataset) -> None:
    """Refuse a model that did not make the shards."""
    require_classes(model, dataset)
    stored, given = str(shards.identity.get("weights", "unknown")), weights_hash(model)
    if stored != given:
        raise WsssError(
            f"Expected the checkpoint that made the shards in {shards.folder} (weights "
            f"{stored[:12]}), found other weights ({given[:12]}).",
            "Give the --checkpoint of the export, or leave it out.",
        )


def _measure(
    shards: CamShards,
    dataset: Dataset,
    progress: Callable[[int], None],
    failed: dict[str, str],
) -> dict[str, Any]:
    """Scores of every stage, none where no image has a mask; `failed` gets unreadable masks."""
    unreadable = {}
    for image_id in shards:
        try:
            if dataset.load_mask(dataset.by_id[image_id]) is not None:
                break
        except BadFile as error:
            unreadable[image_id] = f"mask: {error}"
    else:
        failed.update(unreadable)
        return {}
    scores, bad = evaluate_cams(shards, dataset, shards.stages, progress)
    failed.update(bad)
    return scores


def _sweep(measured: dict[str, StageScore]) -> Chart:
    """The mIoU against the threshold, a line for each stage."""
    series = [
        Series(
            name=stage,
            points=[(t, 100 * miou) for t, miou in score.curve],
            note=f"best {100 * score.miou:.2f} % at {score.threshold:.2f}",
            mark=(score.threshold, 100 * score.miou),
            colour=STAGES.index(stage),
        )
        for stage, score in measured.items()
    ]
    return line_chart(
        "mIoU against the background threshold",
        "; ".join(f"{line.name}: {line.note}" for line in series) + ".",
        "background threshold",
        "mIoU %",
        series,
    )
