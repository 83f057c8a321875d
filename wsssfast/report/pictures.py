"""Small pictures for the page: photos under heat, masks in palette colours, marked patches."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from wsssfast.data.dataset import IGNORE, Mask
from wsssfast.data.palette import mask_palette
from wsssfast.report.colours import css, heat_colours

LONG_SIDE = 320
_MARK = (255, 64, 160)  # of the chosen patch: in no colour map here


@dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Attributes:
        caption: shown below it.
        alt: what it shows, for those who do not see it.
        uri: `data:` address; empty: there is nothing to show.
        width: in pixels.
        height: in pixels.
    """

    caption: str
    alt: str
    uri: str = ""
    width: int = 0
    height: int = 0

    @classmethod
    def of(cls, image: Image.Image, caption: str, alt: str) -> "Picture":
        """Encode an image: palette images as PNG, others as WebP."""
        buffer = io.BytesIO()
        if image.mode == "P":
            kind = "png"
            image.save(buffer, "PNG", optimize=True)
        else:
            kind = "webp"
            image.save(buffer, "WEBP", quality=80, method=6)
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        return cls(caption, alt, f"data:image/{kind};base64,{data}", *image.size)


def thumbnail(image: Image.Image) -> Image.Image:
    """The image with a long side of at most `LONG_SIDE` pixels."""
    factor = min(1.0, LONG_SIDE / max(image.size))
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def heat_overlay(photo: Image.Image, heat: NDArray[np.float32]) -> Image.Image:
    """A map over a photo; where the map is high its colour covers more of the photo.

    Args:
        photo: RGB.
        heat: [h, w] in [0, 1], of any size.
    """
    resized = Image.fromarray(heat).resize(photo.size, Image.Resampling.BILINEAR)
    values = np.asarray(resized, np.float32)
    cover = (0.4 + 0.35 * values)[..., None]
    grey = np.asarray(photo.convert("L"), np.float32)[..., None]
    return _image(grey * (1 - cover) + heat_colours(values) * cover)


def mask_overlay(photo: Image.Image, mask: Mask) -> Image.Image:
    """A mask [h, w], of any size, in VOC's palette over a photo; its background is the photo's."""
    resized = np.asarray(Image.fromarray(mask).resize(photo.size, Image.Resampling.NEAREST))
    colours = mask_palette()[resized].astype(np.float32)
    cover = np.where(resized > 0, 0.55, 0.0)[..., None].astype(np.float32)
    pixels = np.asarray(photo, np.float32)
    return _image(pixels * (1 - cover) + colours * cover)


def mask_picture(mask: Mask, size: tuple[int, int]) -> Image.Image:
    """A mask [H, W] in VOC's palette, as a palette image of (width, height)."""
    picture = Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)
    picture.putpalette(mask_palette().tobytes())
    return picture


def legend(found: Iterable[int], names: Sequence[str]) -> list[tuple[str, str]]:
    """(name, colour) of mask values that occur.

    Args:
        found: the values.
        names: of the classes.
    """
    told = {0: "background", IGNORE: "ignored", **{n + 1: name for n, name in enumerate(names)}}
    palette = mask_palette()
    return [(told[value], css(palette[value])) for value in sorted(told.keys() & set(found))]


def bright_patches(photo: Image.Image, chosen: NDArray[np.bool_]) -> Image.Image:
    """A photo whose chosen patches [h, w] stay as they are, the rest dark.

    The grid is stretched over the whole photo, as the maps are.
    """
    rows, columns = _patch_of_pixel(photo, chosen.shape)
    bright = chosen[rows][:, columns][..., None]
    pixels = np.asarray(photo, np.float32)
    return _image(np.where(bright, pixels, pixels * 0.25))


def frame_patch(picture: Image.Image, grid: tuple[int, ...], point: tuple[int, int]) -> Image.Image:
    """Frame the patch at (row, column) of a grid (h, w) stretched over a picture."""
    rows, columns = _patch_of_pixel(picture, grid)
    top, bottom = np.flatnonzero(rows == point[0])[[0, -1]].tolist()
    left, right = np.flatnonzero(columns == point[1])[[0, -1]].tolist()
    framed = picture.copy()
    box = (left - 1, top - 1, right + 1, bottom + 1)
    ImageDraw.Draw(framed).rectangle(box, outline=_MARK, width=3)
    return framed


def _patch_of_pixel(
    picture: Image.Image, grid: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column in the grid of each row and column of pixels."""
    return (
        np.arange(picture.height) * grid[0] // picture.height,
        np.arange(picture.width) * grid[1] // picture.width,
    )


def _image(pixels: NDArray[np.float32]) -> Image.Image:
    """RGB image of [h, w, 3] in [0, 255]."""
    return Image.fromarray(np.rint(pixels).astype(np.uint8))
