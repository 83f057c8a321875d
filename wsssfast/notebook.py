"""CAMs of a few images, for notebooks and scripts; `export` is for data sets."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from wsssfast.cam_options import CamOptions
from wsssfast.compute import stage_grids
from wsssfast.errors import WsssError
from wsssfast.memory import require_memory
from wsssfast.models.classifier import ClassTokenViT
from wsssfast.shards.reader import full_size


def cams(
    model: ClassTokenViT,
    images: Sequence[Image.Image],
    labels: Sequence[Sequence[int | str]],
    options: CamOptions | None = None,
    *,
    stage: str | None = None,
) -> list[NDArray[np.float32]]:
    """Full-size normalised CAMs of images, for notebooks and scripts.

    Args:
        model: from `wsssfast.load_model`.
        images: PIL images of any sizes; an EXIF orientation is applied.
        labels: per image, classes as 0-based indices or names.
        options: what to compute; the paper's final CAM by default.
        stage: which of the options' stages; the last where None.

    Returns:
        Per image float32 [K, H, W] in [0, 1], maps in the order of the sorted class indices.

    Raises:
        WsssError: unknown classes or stages.
        BadFile: an image too large for this machine's memory.
    """
    options = options or CamOptions()
    stage = stage or options.stages[-1]
    if options.predict_above is not None:
        raise WsssError("Expected options without predict_above: the classes are the labels given.")
    if stage not in options.stages:
        raise WsssError(f"Expected a stage out of {', '.join(options.stages)}, found {stage!r}.")
    results = []
    for turned, wanted in zip(images, labels, strict=True):
        classes = class_indices(model, wanted)
        image = ImageOps.exif_transpose(turned).convert("RGB")
        require_memory(model, image.size, options)
        grids = stage_grids(model, [image], [classes], options)[0][stage]
        size = (image.height, image.width)
        results.append(full_size(grids, size, options.epsilon(stage, len(model.blocks))))
    return results


def class_indices(model: ClassTokenViT, labels: Sequence[int | str]) -> tuple[int, ...]:
    """Classes given by index or name as sorted indices.

    Raises:
        WsssError: a class that the model does not have.
    """
    if isinstance(labels, str):
        raise WsssError(f"Expected a list of classes an image, found the text {labels!r}.")
    names = {name: index for index, name in enumerate(model.config.class_names)}
    found = set()
    for label in labels:
        index = names.get(label, -1) if isinstance(label, str) else int(label)
        if not 0 <= index < model.num_classes:
            raise WsssError(
                f"Unknown class {label!r}.", f"Expected one of {', '.join(names)[:200]}."
            )
        found.add(index)
    return tuple(sorted(found))
