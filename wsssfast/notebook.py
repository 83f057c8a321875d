"""CAMs, masks and pictures of a few images, for notebooks; `export` is for data sets."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from wsssfast.cam_options import CamOptions
from wsssfast.compute import stage_grids
from wsssfast.data.dataset import Mask
from wsssfast.errors import WsssError
from wsssfast.memory import require_memory
from wsssfast.models.classifier import ClassTokenViT
from wsssfast.report.pictures import heat_overlay, mask_overlay
from wsssfast.shards.reader import full_size
from wsssfast.threshold import threshold

AnyImage = Image.Image | NDArray[Any] | Tensor


def cams(
    model: ClassTokenViT,
    images: Sequence[AnyImage],
    labels: Sequence[Sequence[int | str]],
    options: CamOptions | None = None,
    *,
    stage: str | None = None,
) -> list[NDArray[np.float32]]:
    """Full-size normalised CAMs of images.

    Args:
        model: from `wsssfast.load_model`.
        images: of any sizes, as `as_image` takes them.
        labels: per image, classes as 0-based indices or names.
        options: what to compute; the paper's final CAM by default.
        stage: which of the options' stages; the last where None.

    Returns:
        Per image float32 [K, H, W] in [0, 1], maps in the order of the sorted class indices.

    Raises:
        WsssError: unknown classes or stages, or something that is no image.
        BadFile: an image too large for this machine's memory.
    """
    _require_lists(images, labels)
    options = options or CamOptions()
    stage = stage or options.stages[-1]
    if options.predict_above is not None:
        raise WsssError("Expected options without predict_above: the classes are the labels given.")
    if stage not in options.stages:
        raise WsssError(f"Expected a stage out of {', '.join(options.stages)}, found {stage!r}.")
    if len(images) != len(labels):
        raise WsssError(f"Expected labels of {len(images)} images, found {len(labels)}.")
    results = []
    for given, wanted in zip(images, labels, strict=True):
        classes = class_indices(model, wanted)
        image = as_image(given)
        require_memory(model, image.size, options)
        grids = stage_grids(model, [image], [classes], options)[0][stage]
        size = (image.height, image.width)
        results.append(full_size(grids, size, options.epsilon(stage, len(model.blocks))))
    return results


def _require_lists(images: Any, labels: Any) -> None:
    """Refuse one image, or its classes, where a list of them is expected."""
    one = isinstance(images, (Image.Image, str))
    if one or (isinstance(images, (np.ndarray, Tensor)) and images.ndim < 4):
        raise WsssError(
            f"Expected a list of images, found {type(images).__name__}.", "Put it in [ ]."
        )
    if isinstance(labels, str) or any(isinstance(c, (str, int, np.integer)) for c in labels):
        raise WsssError(
            f"Expected a list of classes for each image, found {str(labels)[:60]}.",
            'Such as [["dog"], ["cat", "person"]] for two images.',
        )


def mask_of(
    model: ClassTokenViT,
    maps: NDArray[np.float32],
    labels: Sequence[int | str],
    background: float | tuple[float, float] = 0.4,
) -> Mask:
    """The mask of an image's CAMs by a constant background score (method §6).

    Args:
        model: that made them.
        maps: [K, H, W] as `cams` gives them.
        labels: the same as `cams` had.
        background: score below which a pixel is background; two, low < high: pixels between them
            become 255 (ignore).

    Returns:
        uint8 [H, W]: 0 background, class + 1, 255 ignore.

    Raises:
        WsssError: maps of other classes.
    """
    classes = class_indices(model, labels)
    if maps.ndim != 3 or len(maps) != len(classes):
        raise WsssError(f"Expected maps of {len(classes)} classes, found {list(maps.shape)}.")
    scores = background if isinstance(background, tuple) else (background,)
    return threshold(np.array(classes, np.int64), maps, scores)


def overlay(image: AnyImage, shown: NDArray[Any], axes: Any = None) -> Image.Image:
    """A CAM or a mask over its image.

    Args:
        image: as `as_image` takes it.
        shown: float [h, w] in [0, 1], a CAM, or uint8 [h, w], a mask; of any size.
        axes: matplotlib's, to draw on as well; matplotlib is not installed with this package.

    Returns:
        RGB, of the image's size.

    Raises:
        WsssError: neither a map nor a mask.
    """
    photo = as_image(image)
    if shown.ndim != 2 or shown.dtype.kind not in "fu":
        raise WsssError(
            f"Expected a map of floats or a mask of uint8, [h, w], found {shown.dtype} "
            f"{list(shown.shape)}.",
            "`cams` gives one map a class: choose one.",
        )
    if shown.dtype.kind == "f":
        picture = heat_overlay(photo, np.clip(shown.astype(np.float32), 0, 1))
    else:
        picture = mask_overlay(photo, shown.astype(np.uint8))
    if axes is not None:
        axes.imshow(picture)
        axes.set_axis_off()
    return picture


def as_image(given: AnyImage) -> Image.Image:
    """What users have as an image: RGB, turned as its EXIF data say.

    Args:
        given: a PIL image; an array uint8 [H, W, 3] or [H, W]; a tensor [3, H, W], uint8 or floats
            in [0, 1] as torchvision's transforms make them.

    Raises:
        WsssError: something else, such as a normalised tensor.
    """
    if isinstance(given, Image.Image):
        return ImageOps.exif_transpose(given).convert("RGB")
    if isinstance(given, Tensor):
        pixels = given.detach().cpu()
        if pixels.is_floating_point() and not ((pixels >= 0) & (pixels <= 1)).all():
            raise WsssError(
                f"Expected a tensor of floats in [0, 1], found {pixels.min():.3g} to "
                f"{pixels.max():.3g}.",
                "Give images before they are normalised: the model does that.",
            )
        if pixels.is_floating_point():
            pixels = (pixels.float() * 255).round().to(torch.uint8)
        if pixels.ndim == 3 and pixels.shape[0] == 3:
            given = pixels.permute(1, 2, 0).numpy()
        else:
            raise WsssError(f"Expected a tensor [3, H, W], found {list(pixels.shape)}.")
    if not isinstance(given, np.ndarray) or given.dtype != np.uint8 or not (
        given.ndim == 2 or (given.ndim == 3 and given.shape[2] == 3)
    ):  # fmt: skip
        told = type(given).__name__
        if isinstance(given, np.ndarray):
            told = f"{given.dtype} {list(given.shape)}"
        raise WsssError(f"Expected an image, or an array uint8 [H, W, 3], found {told}.")
    return Image.fromarray(np.ascontiguousarray(given)).convert("RGB")


def class_indices(model: ClassTokenViT, labels: Sequence[int | str]) -> tuple[int, ...]:
    """Classes given by index or name as sorted indices.

    Raises:
        WsssError: a class that the model does not have.
    """
    if isinstance(labels, str):
        raise WsssError(
            f"Expected a list of classes, found the text {labels[:60]!r}.", "Put it in [ ]."
        )
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
