"""Train AffinityNet on the labels of cells (Ahn and Kwak, 2018; method §6)."""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from wsssfast.data.dataset import IGNORE, Dataset, Mask
from wsssfast.errors import WsssError
from wsssfast.kernels.affinity import pairs, starts
from wsssfast.models.affinity import STRIDE, AffinityConfig
from wsssfast.preprocess import to_tensor
from wsssfast.shards.label_shards import LabelShards
from wsssfast.training.options import AffinityOptions
from wsssfast.training.samples import Key, Sample, colour_jitter, randomness, readable

_EPSILON = 1e-5  # [A]: of logarithms and of counts


class AffinitySamples(TorchDataset[Sample]):
    """Augmented crops with the labels of their cells as targets, uint8 [S / 8, S / 8].

    Crops begin at a cell, so that the labels of cells are those of whole images.

    Args:
        dataset: whose images; each has labels of cells in the shards.
        shards: masks of cells of 8 x 8 pixels.
        config: whose normalisation to use.
        options: augmentation.
    """

    def __init__(
        self,
        dataset: Dataset,
        shards: LabelShards,
        config: AffinityConfig,
        options: AffinityOptions,
    ) -> None:
        self.dataset, self.shards = dataset, shards
        self.config, self.options = config, options
        self.jitter = colour_jitter(options.jitter)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Sample:
        """The sample of (epoch, index); an unreadable image gives way to the next readable one.

        Raises:
            WsssError: no image can be read, or labels of another size than its image.
        """
        epoch, index = key
        image, index, failed = readable(self.dataset, index)
        image_id = self.dataset.items[index].id
        cells = self.shards.mask(image_id)
        wanted = tuple(-(-side // STRIDE) for side in (image.height, image.width))
        if cells.shape != wanted:
            raise WsssError(
                f"Expected {wanted[0]}x{wanted[1]} cells of the image {image_id}, found "
                f"{cells.shape[0]}x{cells.shape[1]}.",
                "Make the labels again from these images: discard the run with --overwrite.",
            )
        with randomness(self.options.seed, epoch, key[1]) as rng:
            picture: Image.Image = self.jitter(image)
            pixels, target = crop(picture, cells, self.options.crop // STRIDE, self.config, rng)
        return Sample(pixels, torch.from_numpy(target), torch.zeros(0), failed)


def crop(
    image: Image.Image,
    cells: Mask,
    side: int,
    config: AffinityConfig,
    rng: np.random.RandomState,
) -> tuple[Tensor, NDArray[np.uint8]]:
    """A random square of an image and its cells, mirrored or not.

    Args:
        image: RGB.
        cells: uint8 [h, w].
        side: of the square, in cells; beyond the image, pixels are 0 and cells are ignored.
        config: normalisation.
        rng: where to cut and whether to mirror.

    Returns:
        float32 [3, 8 side, 8 side], normalised, and uint8 [side, side].
    """
    pixels = torch.zeros(3, side * STRIDE, side * STRIDE)
    target = np.full((side, side), IGNORE, np.uint8)
    places = []
    for length in cells.shape:
        spare = length - side
        start = int(rng.randint(abs(spare) + 1))
        places.append((max(0, start if spare > 0 else 0), 0 if spare > 0 else start))
    (top, to_top), (left, to_left) = places
    part = cells[top : top + side, left : left + side]
    target[to_top : to_top + part.shape[0], to_left : to_left + part.shape[1]] = part
    box = (
        left * STRIDE, top * STRIDE, min(image.width, (left + side) * STRIDE),
        min(image.height, (top + side) * STRIDE),
    )  # fmt: skip
    found = to_tensor([image.crop(box)], config)[0]
    _, height, width = found.shape
    row, column = to_top * STRIDE, to_left * STRIDE
    pixels[:, row : row + height, column : column + width] = found
    if rng.randint(2):
        return pixels.flip(-1), target[:, ::-1].copy()
    return pixels, target


def affinity_loss(affinity: Tensor, cells: Tensor) -> Tensor:
    """A quarter each of pairs within background and within a class, half of pairs of two classes.

    Each part is the mean of -log of the affinity, or of -log of 1 - affinity, over its pairs; pairs
    with an ignored end are left out ([A]).

    Args:
        affinity: [B, 34, h, w].
        cells: uint8 [B, h, w]: 0 background, class + 1, 255 ignore.
    """
    rows, columns = starts(*cells.shape[1:])
    source = cells[:, None, rows, columns]
    target = torch.stack([other for _, other in pairs(cells)], 1)
    known = (source != IGNORE) & (target != IGNORE)
    same = known & (source == target)
    value = affinity[:, :, rows, columns]
    near, far = -(value + _EPSILON).log(), -(1 + _EPSILON - value).log()

    def mean(of: Tensor, chosen: Tensor) -> Tensor:
        return (of * chosen).sum() / (chosen.sum() + _EPSILON)

    background, classes = mean(near, same & (source == 0)), mean(near, same & (source != 0))
    return background / 4 + classes / 4 + mean(far, known & (source != target)) / 2
