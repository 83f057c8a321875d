"""CAMs, masks and pictures of a few images, for notebooks; `export` is for data sets."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from wsssfast.cam_options import CamOptions
from wsssfast.compute import stage_grids
from wsssfast.data.dataset import Mask
from wsssfast.data.images import as_rgb
from wsssfast.errors import WsssError
from wsssfast.memory import require_memory
from wsssfast.models.classifier import ClassTokenViT
from wsssfast.report.pictures import heat_overlay, mask_overlay
from wsssfast.shards.reader import full_size
from wsssfast.threshold import background_scores, threshold

_VECTOR = "Of a vector of 0 and 1, one for each class, give np.flatnonzero(vector)."

AnyImage = Image.Image | NDArray[Any] | Tensor


def cams(
    model: ClassTokenViT,
    images: Sequence[AnyImage],
    labels: Sequence[Sequence[int | str]],
    options: CamOptions | None = None,
    *,
    stage: str | None = None,
) -> list[NDArray[np.float32]]:
    """Full-size normalised CAMs of images, of one stage; `stage_cams` gives several.

    Args:
        model: from `wsssfast.load_model`.
        images: of any sizes, 8 bits a channel: PIL's, arrays uint8 [H, W, 3] or [H, W], or tensors
            [3, H, W], uint8 or floats in [0, 1]. PIL's are turned as their EXIF data say.
        labels: per image, classes as 0-based indices or names of `model.config.class_names`.
        options: what to compute; the paper's final CAM by default.
        stage: which of the options' stages; the last where None.

    Returns:
        Per image float32 [K, H, W] in [0, 1], a map for each of its labels, in their order.

    Raises:
        WsssError: unknown or repeated classes, unknown stages, or something that is no image or
            no such model.
        BadFile: an image too large for this machine's memory.
    """
    options = options or CamOptions()
    stage = stage or options.stages[-1]
    if stage not in options.stages:
        raise WsssError(f"Expected a stage out of {', '.join(options.stages)}, found {stage!r}.")
    return [
        maps[stage] for maps in stage_cams(model, images, labels, replace(options, stages=(stage,)))
    ]


def stage_cams(
    model: ClassTokenViT,
    images: Sequence[AnyImage],
    labels: Sequence[Sequence[int | str]],
    options: CamOptions | None = None,
) -> list[dict[str, NDArray[np.float32]]]:
    """As `cams`, of all the options' stages at once: per image stage -> float32 [K, H, W]."""
    options = options or CamOptions()
    _require_model(model)
    _require_lists(images, labels)
    if options.predict_above is not None:
        raise WsssError("Expected options without predict_above: the classes are the labels given.")
    if len(images) != len(labels):
        raise WsssError(f"Expected labels of {len(images)} images, found {len(labels)}.")
    results = []
    for given, wanted in zip(images, labels, strict=True):
        classes = class_indices(model, wanted)
        ordered = tuple(sorted(classes))
        places = [ordered.index(index) for index in classes]
        image = as_image(given)
        require_memory(model, image.size, options)
        found = stage_grids(model, [image], [ordered], options)[0]
        size = (image.height, image.width)
        results.append(
            {
                stage: full_size(grids, size, options.epsilon(stage, len(model.blocks)))[places]
                for stage, grids in found.items()
            }
        )
    return results


def _require_model(model: Any) -> None:
    """Refuse what is no classifier in float32."""
    if not isinstance(model, ClassTokenViT):
        raise WsssError(
            f"Expected a classifier of wsssfast.load_model, found {type(model).__name__}.",
            "Of other networks, AttentionHook gives the attention.",
        )
    dtype = next(model.parameters()).dtype
    if dtype != torch.float32:
        raise WsssError(
            f"Expected a classifier in float32, found {dtype}.",
            "CamOptions(precision=...) chooses what it computes in.",
        )


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
        background: score in [0, 1] below which a pixel is background; two, low < high: pixels
            between them become 255 (ignore).

    Returns:
        uint8 [H, W]: 0 background, class + 1, 255 ignore.

    Raises:
        WsssError: maps of other classes or outside [0, 1], or no such background.
    """
    _require_model(model)
    classes = np.array(class_indices(model, labels), np.int64)
    scores = background_scores(background)
    if maps.ndim != 3 or len(maps) != len(classes):
        raise WsssError(f"Expected maps of {len(classes)} classes, found {list(maps.shape)}.")
    if maps.size and not (maps.min() >= 0 and maps.max() <= 1):
        raise WsssError(
            f"Expected maps in [0, 1], found {maps.min():.3g} to {maps.max():.3g}.",
            "Give them as `cams` does.",
        )
    order = np.argsort(classes)  # of equal maps the first class wins, as in shards
    return threshold(classes[order], maps[order], scores)


def overlay(image: AnyImage, shown: NDArray[Any], axes: Any = None) -> Image.Image:
    """A CAM or a mask over its image.

    Args:
        image: as `cams` takes it.
        shown: float [h, w], a CAM, clipped to [0, 1]; or integers [h, w] of 0 to 255, a mask; of
            any size.
        axes: matplotlib's, to draw on as well; matplotlib is not installed with this package.

    Returns:
        RGB, of the image's size.

    Raises:
        WsssError: neither a map nor a mask.
    """
    photo = as_image(image)
    if not isinstance(shown, np.ndarray) or shown.ndim != 2:
        found = list(shown.shape) if isinstance(shown, np.ndarray) else type(shown).__name__
        raise WsssError(
            f"Expected a map or a mask as an array [h, w], found {found}.",
            "`cams` gives an array [K, h, w] an image: choose one of its maps.",
        )
    is_map = shown.dtype.kind == "f"
    if shown.dtype.kind not in "fuib" or not (
        np.isfinite(shown).all() if is_map else shown.min() >= 0 and shown.max() <= 255
    ):
        raise WsssError(
            "Expected a map of finite floats or a mask of integers of 0 to 255, found others of "
            f"{shown.dtype}."
        )
    if is_map:
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
        WsssError: something else, such as a normalised tensor or an image without pixels.
    """
    if isinstance(given, Image.Image):
        if 0 in given.size:
            raise WsssError(f"Expected an image with pixels, found {given.width}x{given.height}.")
        return as_rgb(given)
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
    if not isinstance(given, np.ndarray) or given.dtype != np.uint8 or given.size == 0 or not (
        given.ndim == 2 or (given.ndim == 3 and given.shape[2] == 3)
    ):  # fmt: skip
        told = type(given).__name__
        if isinstance(given, np.ndarray):
            told = f"{given.dtype} {list(given.shape)}"
        raise WsssError(f"Expected an image, or an array uint8 [H, W, 3] or [H, W], found {told}.")
    return Image.fromarray(np.ascontiguousarray(given)).convert("RGB")


def class_indices(model: ClassTokenViT, labels: Sequence[int | str]) -> tuple[int, ...]:
    """Classes given by index or name as indices, in the order given.

    Raises:
        WsssError: a class that the model does not have, one twice, or something else.
    """
    if isinstance(labels, str):
        raise WsssError(
            f"Expected a list of classes, found the text {labels[:60]!r}.", "Put it in [ ]."
        )
    names = {name: index for index, name in enumerate(model.config.class_names)}
    found = []
    for label in labels.tolist() if isinstance(labels, Tensor) else labels:
        if isinstance(label, bool) or not isinstance(label, (str, int, np.integer)):
            raise WsssError(f"Expected classes as indices or names, found {label!r}.", _VECTOR)
        index = names.get(label, -1) if isinstance(label, str) else int(label)
        if not 0 <= index < model.num_classes:
            raise WsssError(
                f"Unknown class {label!r}.", f"Expected one of {', '.join(names)[:200]}."
            )
        found.append(index)
    if len(set(found)) < len(found):
        raise WsssError(f"Expected each class once, found {str(found)[:60]}.", _VECTOR)
    return tuple(found)
