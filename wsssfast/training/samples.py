"""Training samples: decoded, augmented, and random by (seed, epoch, index) alone.

Nothing depends on the number of loader processes, on the batch or on where a run was resumed.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import InterpolationMode, v2

from wsssfast.data.dataset import Dataset
from wsssfast.errors import BadFile, WsssError
from wsssfast.models.classifier_config import ClassifierConfig
from wsssfast.models.stochastic_depth import draw_factors
from wsssfast.preprocess import to_tensor
from wsssfast.training.options import ClassifierOptions

Key = tuple[int, int]  # epoch, index


class Sample(NamedTuple):
    """One sample, or a batch of them.

    Attributes:
        image: float32 [3, S, S], normalised.
        target: what the loss compares with.
        keep: float32 [2 * depth], factors of stochastic depth.
        failed: (id, reason) of images that could not be read and were passed over.
    """

    image: Tensor
    target: Tensor
    keep: Tensor
    failed: list[tuple[str, str]]


class ClassifierSamples(TorchDataset[Sample]):
    """Augmented images with their labels as targets [C] of 0 and 1.

    Args:
        dataset: images and labels.
        config: whose image size and normalisation to use.
        options: augmentation.
        depth: number of blocks of the network.
    """

    def __init__(
        self, dataset: Dataset, config: ClassifierConfig, options: ClassifierOptions, depth: int
    ) -> None:
        self.dataset, self.config, self.options, self.depth = dataset, config, options, depth
        self.pixels, self.tensors = _transforms(config, options)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Sample:
        """The sample of (epoch, index); an unreadable image gives way to the next readable one.

        Raises:
            WsssError: no image can be read.
        """
        epoch, index = key
        image, index, failed = readable(self.dataset, index)
        target = torch.zeros(len(self.dataset.class_names))
        target[list(self.dataset.items[index].labels)] = 1
        with randomness(self.options.seed, epoch, key[1]) as rng:
            keep = torch.from_numpy(draw_factors(rng, self.options.drop_path, self.depth))
            tensor = to_tensor([self.pixels(image)], self.config)[0]
            return Sample(self.tensors(tensor), target, keep, failed)


def readable(dataset: Dataset, index: int) -> tuple[Image.Image, int, list[tuple[str, str]]]:
    """The first image from `index` on that can be read, its index, and what was passed over.

    Raises:
        WsssError: none can.
    """
    failed: list[tuple[str, str]] = []
    for offset in range(len(dataset)):
        place = (index + offset) % len(dataset)
        item = dataset.items[place]
        try:
            return dataset.load_image(item), place, failed
        except BadFile as error:
            failed.append((item.id, str(error)))
    raise WsssError("Expected images to train on; not one can be read.", failed[0][1])


@contextmanager
def randomness(seed: int, epoch: int, index: int) -> Iterator[np.random.RandomState]:
    """Python's, numpy's and torch's random states as functions of the arguments; then as before.

    All three, because the transforms of torchvision and timm draw from one or the other.
    """
    drawn = drawn_by(seed, epoch, index)
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(drawn)
    np.random.seed(drawn % 2**32)
    torch.default_generator.manual_seed(drawn % 2**63)  # alone: GPUs' are a millisecond more
    try:
        yield np.random.RandomState((drawn >> 32) % 2**32)
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def drawn_by(*numbers: int) -> int:
    """A number of 64 bits that depends on all the numbers given."""
    text = "/".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _transforms(config: ClassifierConfig, options: ClassifierOptions) -> tuple[Any, Any]:
    """What is done to PIL images, and to normalised tensors."""
    size = config.image_size
    crop = options.resize or size
    if crop < size:
        raise WsssError(
            f"Expected to resize to at least the image size {size}, found {crop}.",
            "Give --resize as well as --image-size, or 0.",
        )
    steps: list[Any] = [
        v2.RandomResizedCrop(
            crop, scale=(options.least_area, 1.0), interpolation=InterpolationMode.BICUBIC
        ),
        v2.RandomHorizontalFlip(),
    ]
    if crop > size:
        steps.insert(1, v2.RandomCrop(size))
    if options.rand_augment:
        from timm.data.auto_augment import rand_augment_transform

        try:
            grey = tuple(min(255, round(255 * x)) for x in config.mean)
            hparams = {
                "translate_const": int(size * 0.45),
                "img_mean": grey,
                "interpolation": Image.Resampling.BICUBIC,
            }
            steps.append(rand_augment_transform(options.rand_augment, hparams))
        except (AssertionError, ValueError, KeyError) as error:
            raise WsssError(
                f"Expected a setting of timm's RandAugment, found {options.rand_augment!r}.",
                "Such as rand-m9-mstd0.5-inc1.",
            ) from error
    if options.jitter:
        steps.append(v2.ColorJitter(options.jitter, options.jitter, options.jitter))
    erase: Any = v2.Identity()
    if options.erase:
        from timm.data.random_erasing import RandomErasing

        erase = RandomErasing(options.erase, mode="pixel", device="cpu")  # type: ignore[no-untyped-call]
    return v2.Compose(steps), erase


def colour_jitter(strength: float) -> Any:
    """Random brightness, contrast and saturation of PIL images; of hue a third."""
    return v2.ColorJitter(strength, strength, strength, strength / 3)


class StepKeys:
    """Keys of the samples of each part of each step of one worker: a batch sampler.

    The samples of a step depend on the seed and the step alone; workers and accumulation parts
    share them out.

    Args:
        length: of the data set.
        batch_size: samples a step.
        parts: accumulation parts of a step, of each worker.
        rank: of this worker.
        world: number of workers.
        seed: of the order.
        steps: range of steps to give.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        parts: int,
        rank: int,
        world: int,
        seed: int,
        steps: range,
    ) -> None:
        self.length, self.batch_size, self.parts = length, batch_size, parts
        self.rank, self.world, self.seed, self.steps = rank, world, seed, steps

    def __len__(self) -> int:
        return len(self.steps) * self.parts

    def __iter__(self) -> Iterator[list[Key]]:
        per_epoch = self.length // self.batch_size
        share = self.batch_size // (self.parts * self.world)
        current, order = -1, np.zeros(0, np.int64)
        for step in self.steps:
            epoch, place = divmod(step, per_epoch)
            if epoch != current:
                rng = np.random.RandomState([self.seed, epoch])
                current, order = epoch, rng.permutation(self.length)
            rows = order[place * self.batch_size :][: self.batch_size]
            for part in range(self.parts):
                first = (part * self.world + self.rank) * share
                yield [(epoch, int(index)) for index in rows[first : first + share]]


def collate(samples: list[Sample]) -> Sample:
    """Samples as one batch."""
    return Sample(
        torch.stack([s.image for s in samples]),
        torch.stack([s.target for s in samples]),
        torch.stack([s.keep for s in samples]),
        [entry for s in samples for entry in s.failed],
    )
