"""The pictures of one image: its maps, its masks, its attention."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsssfast.cam_options import CamOptions
from wsssfast.data.dataset import Dataset, Mask
from wsssfast.errors import BadFile
from wsssfast.labels.options import LabelOptions
from wsssfast.models.classifier import ClassTokenViT
from wsssfast.report.attention import AttentionMaps, attention_maps, stored_options
from wsssfast.report.choose import Choice
from wsssfast.report.labels import refinement, unrefined
from wsssfast.report.pictures import (
    Picture,
    bright_patches,
    frame_patch,
    heat_overlay,
    legend,
    mask_picture,
    thumbnail,
)
from wsssfast.shards.label_shards import LabelShards
from wsssfast.shards.reader import CamShards, full_size

MOST_CLASSES = 3  # of an image that get a row of maps


@dataclass(frozen=True)
class Sources:
    """Where the pictures come from.

    Attributes:
        shards: the CAMs.
        dataset: images and masks.
        stages: to show.
        stage: whose thresholded maps are the pseudo-labels.
        threshold: of that stage; None: unknown.
        labels: the pseudo-labels instead.
        model: for the attention; None: none is shown.
        before: what makes the masks that walk and CRF started from; None: they are not shown.
    """

    shards: CamShards
    dataset: Dataset
    stages: tuple[str, ...]
    stage: str
    threshold: float | None
    labels: LabelShards | None = None
    model: ClassTokenViT | None = None
    before: LabelOptions | None = None


@dataclass(frozen=True)
class Exhibit:
    """What the page shows of one image.

    Attributes:
        choice: which image, and why.
        labels: names of its classes.
        masks: the image, its pseudo-label, before refinement and after, and its ground truth.
        legend: (name, colour) of the values in the masks.
        cams: (class name, a picture of each stage) of its first classes.
        attention: of its first class; empty without a model.
    """

    choice: Choice
    labels: list[str]
    masks: list[Picture]
    legend: list[tuple[str, str]]
    cams: list[tuple[str, list[Picture]]]
    attention: list[Picture]


def exhibit(sources: Sources, choice: Choice, failed: dict[str, str]) -> Exhibit | None:
    """Make the pictures of one image.

    Args:
        sources: where they come from.
        choice: which image.
        failed: gets id -> reason of what cannot be read.

    Returns:
        None where the image itself cannot be read.
    """
    shards, dataset = sources.shards, sources.dataset
    try:
        image = dataset.load_image(dataset.by_id[choice.id])
        stored = shards.grids(choice.id).image_size
        if stored != (image.height, image.width):
            raise BadFile(
                f"{image.width}x{image.height} pixels, while its CAM is of {stored[1]}x{stored[0]}"
            )
    except BadFile as error:
        failed[choice.id] = str(error)
        return None
    photo = thumbnail(image)
    names = shards.class_names
    found, masks = _masks(sources, choice.id, image, photo.size, failed)
    labels = shards.labels(choice.id).tolist()
    maps = {stage: shards.cam(choice.id, stage)[1] for stage in sources.stages}
    cams = [
        (
            names[label],
            [
                Picture.of(
                    heat_overlay(photo, maps[stage][n]),
                    stage,
                    f"{stage} map of {names[label]} over {choice.id}",
                )
                for stage in sources.stages
            ],
        )
        for n, label in enumerate(labels[:MOST_CLASSES])
    ]
    attention = []
    if sources.model is not None and labels:
        options = stored_options(shards.identity)
        try:
            attended = attention_maps(sources.model, image, labels[0], options)
            attention = _attention(photo, attended, names[labels[0]], options)
        except BadFile as error:
            failed[choice.id] = f"attention: {error}"
    return Exhibit(
        choice,
        [names[label] for label in labels],
        [Picture.of(photo, "image", f"image {choice.id}"), *masks],
        legend(found, names),
        cams,
        attention,
    )


def _masks(
    sources: Sources,
    image_id: str,
    image: Image.Image,
    size: tuple[int, int],
    failed: dict[str, str],
) -> tuple[set[int], list[Picture]]:
    """The values in all masks, and the pictures of pseudo-labels and ground truth."""
    unary: list[tuple[Mask | None, str]] = []
    pseudo: Mask | None = None
    caption = "pseudo-label"
    if sources.before is not None and sources.labels is not None:
        how = refinement(sources.labels)
        caption = f"pseudo-label after {how}"
        plain = unrefined(sources.shards, image_id, sources.before)
        unary = [(plain, f"{sources.before.stage} before {how}")]
    if sources.labels is not None:
        if image_id in sources.labels.ids:
            pseudo = sources.labels.mask(image_id)
    elif sources.threshold is not None:
        pseudo = sources.shards.mask(image_id, sources.threshold, sources.stage)
        caption = f"pseudo-label: {sources.stage} above {sources.threshold:.2f}"
    try:
        truth = sources.dataset.load_mask(sources.dataset.by_id[image_id])
    except BadFile as error:
        failed[image_id] = f"mask: {error}"
        truth = None
    found: set[int] = set()
    pictures = []
    for mask, told in (*unary, (pseudo, caption), (truth, "ground truth")):
        alt = f"{told} of {image_id}"
        if mask is None:
            pictures.append(Picture(told, alt))
        elif mask.shape != (image.height, image.width):
            failed[image_id] = f"{told} of {mask.shape[1]}x{mask.shape[0]} pixels"
            pictures.append(Picture(told, alt))
        else:
            found |= set(np.unique(mask).tolist())
            pictures.append(Picture.of(mask_picture(mask, size), told, alt))
    return found, pictures


def _attention(
    photo: Image.Image, maps: AttentionMaps, name: str, options: CamOptions
) -> list[Picture]:
    """Figs. 1 and 3 for one class: attention before and after, related patches, their row."""
    grid, (row, column) = maps.related.shape, maps.point
    place = f"the patch in row {row + 1} and column {column + 1} of {grid[0]} x {grid[1]}"

    def heat(values: NDArray[np.float32]) -> Image.Image:
        return heat_overlay(photo, full_size([values[None]], (photo.height, photo.width), 1e-12)[0])

    def told(caption: str, values: NDArray[np.float32]) -> str:
        low, high = (
            np.format_float_positional(value, precision=2, fractional=False, trim="-")
            for value in (values.min(), values.max())
        )
        return f"{caption}: {low} to {high}"

    def framed(picture: Image.Image) -> Image.Image:
        return frame_patch(picture, grid, maps.point)

    return [
        Picture.of(
            heat(maps.before),
            told("c2p", maps.before),
            f"attention of the {name} token to the patches",
        ),
        Picture.of(
            heat(maps.after),
            told(f"c2p + {options.alpha:g}·r", maps.after),
            f"attention of the {name} token to the patches after modulation",
        ),
        Picture.of(
            framed(bright_patches(photo, maps.related)),
            f"U(i): {maps.related.sum()} related patches of {maps.related.size}",
            f"the patches related to {place} bright, the others dark",
        ),
        Picture.of(
            framed(heat(maps.row)),
            told("p2p of the framed patch", maps.row),
            f"attention of {place} to all patches",
        ),
    ]
