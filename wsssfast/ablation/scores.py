"""The scores of finished ablations: out of score shards, or out of the JSON of `ablate`."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from wsssfast.ablation.settings import Setting
from wsssfast.errors import WsssError
from wsssfast.evaluate import CamScorer
from wsssfast.parse import json_of, what_fails
from wsssfast.shards.score_shards import ScoreShards

_NAMED = ("weights", "flip", "precision", "include_self", "fuse")


@dataclass(frozen=True)
class Ablation:
    """The scores of a finished run.

    Attributes:
        scores: setting -> result of `CamScorer`.
        failed: id -> reason of images that could not be scored.
        images: how many were.
        identity: what made the scores.
    """

    scores: dict[Setting, dict[str, Any]]
    failed: dict[str, str]
    images: int
    identity: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        rows = [{**setting.to_json(), **found} for setting, found in self.scores.items()]
        return {"settings": rows, **{key: self.identity[key] for key in _NAMED},
                "images": self.images, "unreadable": self.failed}  # fmt: skip

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> "Ablation":
        """From `to_json`'s result; raises KeyError, TypeError or ValueError on anything else."""
        own = [field.name for field in fields(Setting)]
        scores = {}
        for row in told["settings"]:
            setting = Setting.from_json({name: row[name] for name in own})
            found = {key: value for key, value in row.items() if key not in own}
            scores[setting] = {
                **found, "miou": float(found["miou"]), "threshold": float(found["threshold"]),
            }  # fmt: skip
        if not scores:
            raise ValueError("no settings")
        identity = {key: told[key] for key in _NAMED}
        return cls(scores, dict(told["unreadable"]), int(told["images"]), identity)


def read_ablation(folder: Path) -> Ablation:
    """Add up the score shards of a folder.

    Raises:
        WsssError: no score shards there, missing or damaged ones, or not one image scored.
    """
    shards = ScoreShards(folder)
    if shards.missing_shards:
        raise WsssError(
            f"Expected all score shards in {folder}, found {len(shards.missing_shards)} missing.",
            "Run the same command again.",
        )
    if not shards.ids:
        raise WsssError(
            "Expected masks to score against, found none.", "Scoring needs a data set with masks."
        )
    truth, seen = shards.counts()
    try:
        settings = [Setting.from_json(told) for told in shards.identity["settings"]]
        scorers = [CamScorer(shards.class_names, shards.identity["thresholds"]) for _ in settings]
        for scorer, counts in zip(scorers, seen, strict=True):
            scorer.truth, scorer.seen, scorer.images = truth, counts, len(shards)
        scores = {s: scorer.result() for s, scorer in zip(settings, scorers, strict=True)}
        found = Ablation(scores, shards.failed, len(shards), shards.identity)
        found.to_json()
    except (TypeError, ValueError, LookupError) as error:
        raise WsssError(
            f"Expected settings and thresholds of an ablation in {folder}, found others: "
            f"{what_fails(error)}."
        ) from error
    return found


def read_ablation_files(paths: Sequence[Path]) -> list[Ablation]:
    """Read what `ablate --json` wrote for several classifiers.

    Args:
        paths: at least one.

    Raises:
        WsssError: no such file, a file of another command, or runs that cannot be compared: of
            other settings, data sets, splits or numbers of images, or of one classifier twice.
    """
    runs, data = [], []
    for path in paths:
        try:
            told = json_of(path.read_text(encoding="utf-8"))
            runs.append(Ablation.from_json(told))
            data.append((told["dataset"], told["split"], runs[-1].images))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise WsssError(
                f"Expected the scores of an ablation in {path}, found something else: "
                f"{what_fails(error)}.",
                "Make them with --json of `wsssfast ablate`.",
            ) from error
    for path, run, seen in zip(paths, runs, data, strict=True):
        if seen != data[0]:
            found, wanted = ("{} {}, {} images".format(*one) for one in (seen, data[0]))
            raise WsssError(f"Expected ablations of one data set, {wanted}; {path} is of {found}.")
        if list(run.scores) != list(runs[0].scores):
            raise WsssError(f"Expected ablations of equal settings, found others in {path}.")
    if len({str(run.identity["weights"]) for run in runs}) < len(runs):
        raise WsssError("Expected ablations of different classifiers, found one of them twice.")
    return runs
