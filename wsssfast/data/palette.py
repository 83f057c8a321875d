"""Colours of masks."""

import numpy as np
from numpy.typing import NDArray

from wsssfast.data.dataset import IGNORE


def mask_palette() -> NDArray[np.uint8]:
    """VOC's colours [256, 3] of mask values: the value's bits dealt to the channels in turn."""
    values = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= ((values >> (3 * bit + channel) & 1) << (7 - bit)).astype(
                np.uint8
            )
    palette[IGNORE] = (224, 224, 192)
    return palette
