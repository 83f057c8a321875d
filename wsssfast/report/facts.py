"""What was run, in words: data set, classifier, options, versions."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from wsssfast.data.dataset import Dataset
from wsssfast.models.classifier import ClassTokenViT
from wsssfast.shards.reader import CamShards

_TOLD_APART = ("class_names", "weights", "dataset", "stages", "labels")
Facts = list[tuple[str, str]]


def run_facts(
    shards: CamShards, dataset: Dataset, model: ClassTokenViT | None, scored: int, date: str
) -> Facts:
    """(name, value) of what was run.

    Args:
        shards: the CAMs.
        dataset: of the shards.
        model: that made them, where it is given.
        scored: number of images that were scored.
        date: of the report.
    """
    split = "+".join(Path(part).name for part in dataset.split.split("+"))
    made = next(iter(shards.sidecars.values())).versions
    weights = str(shards.identity.get("weights", "not recorded"))
    return [
        ("Data set", f"{dataset.name}, split {split}"),
        (
            "Images",
            f"{len(shards)} with CAMs and {scored} scored, of {len(dataset)} in the split",
        ),
        ("Image labels", f"from {dataset.label_source}; they choose the classes of each image"),
        ("Classifier", _architecture(model) if model else "not given to this report"),
        ("Weights", f"SHA-256 {weights[:16]}…" if len(weights) > 16 else weights),
        ("Classes", f"{len(shards.class_names)}: {', '.join(shards.class_names)}"),
        ("CAMs made with", ", ".join(f"{name} {made[name]}" for name in sorted(made))),
        ("Report", f"{date}, wsssfast {version('wsssfast')}"),
    ]


def option_facts(shards: CamShards) -> Facts:
    """(name, value) of the shards' identity: every option that changes the numbers."""
    return [
        (key.replace("_", " "), _text(value))
        for key, value in sorted(shards.identity.items())
        if key not in _TOLD_APART
    ]


def _architecture(model: ClassTokenViT) -> str:
    config, classes = model.config, model.num_classes
    changed = ", ".join(f"{key} {_text(value)}" for key, value in config.arch_options.items())
    head = "with" if config.patch_head else "without"
    return (
        f"{config.arch}{f' ({changed})' if changed else ''}, {classes} class tokens, {head} patch "
        f"head, image size {config.image_size}"
    )


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)[:80]
