"""Decode one image or mask file, exactly as PIL does."""

import logging
import os
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from wsssfast.data.dataset import Item, Mask
from wsssfast.errors import BadFile

# PIL warns about odd files (corrupt EXIF, transparent palettes) that it decodes all the same. A
# filter for good, as `catch_warnings` is not safe in the threads that decode.
warnings.filterwarnings("ignore", module=r"PIL\.")

# What Pillow's TIFF reader logs it raises too; unheard, a log of Python's goes to stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())

EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".jp2",
)  # fmt: skip
MOST_PIXELS = 2 * 89_478_485  # beyond it PIL decodes no image, nor is there a mask
_WIDTH, _HEIGHT = 0x0100, 0x0101  # TIFF tags
_PNG_METADATA = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")
_ORIENTATION = 0x0112  # EXIF tag; values 5-8 swap width and height


def read_rgb(path: Path) -> Image.Image:
    """The image as RGB, EXIF orientation applied.

    Raises:
        BadFile: the file cannot be decoded completely, or `as_rgb` refuses it.
    """
    try:
        with Image.open(path) as image:
            return as_rgb(image)
    except BadFile:
        raise
    except Exception as error:  # PIL's decoders raise a dozen types for damaged files
        raise BadFile(_reason(error)) from error


def as_rgb(image: Image.Image) -> Image.Image:
    """RGB, EXIF orientation applied.

    Grey, palette, CMYK and alpha become what PIL's `convert("RGB")` makes of them (alpha is
    dropped). Of 16 bits a channel the upper 8 are kept: PIL does so for colours, but clips grey.

    Raises:
        BadFile: 32-bit integers or floats, whose range nothing tells.
    """
    if image.mode in ("I", "F"):
        kind = "floats" if image.mode == "F" else "integers"
        raise BadFile(f"expected 8 or 16 bits a channel, found 32-bit {kind}: scale them to 8 bits")
    turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith("I;16"):
        turned = Image.fromarray((np.asarray(turned) >> 8).astype(np.uint8))
    return turned.convert("RGB")


def rgb_size(path: Path) -> tuple[int, int]:
    """(width, height) of `read_rgb(path)`, from the header alone.

    Raises:
        BadFile: no image header.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            if isinstance(image, TiffImageFile):  # newer Pillow gives its turned size already
                width, height = image.tag_v2[_WIDTH], image.tag_v2[_HEIGHT]
            if isinstance(image, PngImageFile) and not _metadata_behind_pixels(path):
                exif = Image.Image.getexif(image)  # its own decodes the pixels to look behind them
            else:
                exif = image.getexif()
            turned = exif.get(_ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception as error:  # as above
        raise BadFile(_reason(error)) from error
    return (height, width) if turned else (width, height)


def _metadata_behind_pixels(path: Path) -> bool:
    """Whether a PNG has chunks behind its pixels that may hold an orientation."""
    pixels = False
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if pixels and kind in _PNG_METADATA:
                return True
            pixels |= kind == b"IDAT"
            file.seek(length + 4, os.SEEK_CUR)
    return False


def read_mask(path: Path) -> Mask:
    """uint8 [H, W] of a palette or grey mask file; the values are class indices, not colours.

    Raises:
        BadFile: undecodable, or an image of colours.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L"):
                raise BadFile(f"expected a palette or 8-bit grey mask, found mode {image.mode}")
            return np.array(image, dtype=np.uint8)
    except BadFile:
        raise
    except Exception as error:  # as above
        raise BadFile(_reason(error)) from error


def item_size(item: Item) -> tuple[int, int]:
    """(width, height) of a file-backed item."""
    assert item.image is not None
    return rgb_size(item.image)


def item_image(item: Item) -> Image.Image:
    """RGB pixels of a file-backed item."""
    assert item.image is not None
    return read_rgb(item.image)


def item_mask(item: Item) -> Mask | None:
    """Mask of a file-backed item, None where it has none."""
    return None if item.mask is None else read_mask(item.mask)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "file not found"
    if isinstance(error, PermissionError):
        return "permission denied"
    told = f"{error}" if type(error) is OSError else f"{type(error).__name__}: {error}"
    return " ".join(told.split())[:200]
