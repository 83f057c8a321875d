"""Colours of heat, and colours as CSS has them."""

import numpy as np
from numpy.typing import NDArray

# dark violet over blue and green to yellow: lightness rises evenly, also for the colour-blind
HEAT = np.array(
    [
        (68, 1, 84), (72, 33, 115), (67, 62, 133), (56, 88, 140), (45, 112, 142), (37, 133, 142),
        (30, 155, 138), (42, 176, 127), (82, 197, 105), (134, 213, 73), (194, 223, 35),
        (253, 231, 37),
    ],
    np.float32,
)  # fmt: skip


def heat_colours(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Colours [..., 3] in [0, 255] of values [...] in [0, 1], interpolated between `HEAT`'s."""
    place = values.clip(0, 1) * (len(HEAT) - 1)
    below = np.minimum(place.astype(np.int64), len(HEAT) - 2)
    part = (place - below)[..., None].astype(np.float32)
    colours: NDArray[np.float32] = HEAT[below] * (1 - part) + HEAT[below + 1] * part
    return colours


def css(colour: NDArray[np.generic]) -> str:
    """`#rrggbb` of a colour [3] in [0, 255]."""
    return "#" + "".join(f"{int(channel):02x}" for channel in colour)
