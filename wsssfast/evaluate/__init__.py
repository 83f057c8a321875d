"""Scores of shards against masks."""

from wsssfast.evaluate.cam_scorer import THRESHOLDS, CamScorer, Truth
from wsssfast.evaluate.cams import evaluate_cams
from wsssfast.evaluate.labels import LabelScorer, evaluate_labels
from wsssfast.evaluate.masks import Masks
from wsssfast.evaluate.scores import scores

__all__ = [
    "THRESHOLDS", "CamScorer", "LabelScorer", "Masks", "Truth", "evaluate_cams", "evaluate_labels",
    "scores",
]  # fmt: skip
