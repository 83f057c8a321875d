"""From an image to probabilities of its pixels: scales, mirror images, windows (method §7)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from wsssfast.errors import WsssError
from wsssfast.models.segmenter import Segmenter
from wsssfast.preprocess import normalise

Fuse = Literal["max", "mean"]
_OVERLAP = 1 / 3  # of neighbouring windows, at least


@dataclass(frozen=True)
class SegmentOptions:
    """How an image is segmented; every field changes the numbers.

    Attributes:
        scales: factors on the image's sides.
        fuse: what joins the probabilities of scales and mirror images: the larger ([M]), which
            then sum to more than one, or the mean.
        flip: whether the mirror image is seen too.
        tile: side in pixels of the windows that larger images are seen through, a third or more of
            each shared with the next; 0: images are seen whole.
    """

    scales: tuple[float, ...] = (1.0,)
    fuse: Fuse = "mean"
    flip: bool = True
    tile: int = 0

    def __post_init__(self) -> None:
        if self.fuse not in get_args(Fuse):
            raise WsssError(
                f"Expected fuse out of {', '.join(get_args(Fuse))}, found {str(self.fuse)[:40]!r}."
            )
        if not self.scales or not all(0 < scale <= 16 for scale in self.scales):
            told = ",".join(f"{scale:g}" for scale in self.scales)
            raise WsssError(f"Expected scales above 0 and up to 16, found {told or 'none'}.")
        if self.tile and not 32 <= self.tile <= 65536:
            raise WsssError(f"Expected windows of 32 to 65536 pixels, or 0, found {self.tile}.")

    def to_json(self) -> dict[str, Any]:
        """Every field as plain JSON types."""
        return {**vars(self), "scales": list(self.scales)}


WHOLE = SegmentOptions()


@torch.no_grad()
def probabilities(model: Segmenter, image: Tensor, options: SegmentOptions = WHOLE) -> Tensor:
    """Probabilities of background and classes.

    Each scale is a bilinear resize of the normalised image to int(side * scale), with aligned
    corners ([M]); its scores come back to full size bilinearly, then softmax.

    Args:
        model: in evaluation mode.
        image: uint8 RGB [H, W, 3], on its device.
        options: how.

    Returns:
        float32 [C + 1, H, W] in [0, 1].
    """
    height, width = image.shape[:2]
    pixels = normalise(image[None], model.config)
    found: Tensor | None = None
    views = 0
    for scale in options.scales:
        size = [max(1, int(side * scale)) for side in (height, width)]
        seen = pixels
        if size != [height, width]:
            seen = F.interpolate(pixels, size, mode="bilinear", align_corners=True)
        for mirrored in (False, True)[: 1 + options.flip]:
            scores = _scores(model, seen.flip(-1) if mirrored else seen, options.tile).float()
            scores = scores.flip(-1) if mirrored else scores
            if size != [height, width]:
                scores = F.interpolate(
                    scores, (height, width), mode="bilinear", align_corners=False
                )
            one = torch.softmax(scores, 1)[0]
            views += 1
            if found is None:
                found = one
            elif options.fuse == "max":
                torch.maximum(found, one, out=found)
            else:
                found += one
    assert found is not None
    return found if options.fuse == "max" else found.div_(views)


def _scores(model: Segmenter, pixels: Tensor, tile: int) -> Tensor:
    """Scores [1, C + 1, H, W]; of windows, their mean where they overlap."""
    height, width = pixels.shape[-2:]
    if not tile or max(height, width) <= tile:
        whole: Tensor = model(pixels)
        return whole
    total: Tensor | None = None
    times = pixels.new_zeros(height, width)
    for rows in _windows(height, tile):
        for columns in _windows(width, tile):
            part = model(pixels[..., rows, columns]).float()
            if total is None:
                total = part.new_zeros(1, part.shape[1], height, width)
            total[..., rows, columns] += part
            times[rows, columns] += 1
    assert total is not None
    return total / times


def _windows(length: int, tile: int) -> Iterator[slice]:
    """Windows of equal size that cover a length evenly."""
    if length <= tile:
        yield slice(0, length)
        return
    spare = length - tile
    steps = -(-spare // max(1, int(tile * (1 - _OVERLAP))))
    for n in range(steps + 1):
        begin = round(spare * n / steps)
        yield slice(begin, begin + tile)
