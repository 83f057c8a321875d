"""Train the classifier on image-level labels (Eqs. 7-11)."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from wsssfast.data.dataset import Dataset, Item
from wsssfast.errors import WsssError
from wsssfast.models.classifier import ClassifierConfig, ClassTokenViT, classifier_loss
from wsssfast.models.scratch import init_from_scratch
from wsssfast.preprocess import to_tensor


@dataclass(frozen=True)
class TrainOptions:
    """A schedule.

    Attributes:
        epochs: passes over the data.
        batch_size: images a step; a last incomplete batch is dropped.
        rate: peak learning rate of AdamW, after a linear warm-up over a twentieth of the steps,
            falling to nothing along a cosine.
        weight_decay: on matrices; none on vectors, class tokens and positions ([M]).
        least_area: smallest share of the image that a random crop shows.
        seed: of initialisation, order, crops and flips.
    """

    epochs: int
    batch_size: int = 32
    rate: float = 1e-3
    weight_decay: float = 0.05
    least_area: float = 0.3
    seed: int = 0


def train_classifier(
    dataset: Dataset,
    config: ClassifierConfig,
    options: TrainOptions,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> ClassTokenViT:
    """Train from scratch; the same arguments give the same weights on the same machine.

    Args:
        dataset: images and labels; masks are not looked at.
        config: the network.
        options: the schedule.
        progress: called after each step with its number and loss.

    Returns:
        The trained model in evaluation mode.

    Raises:
        WsssError: fewer images than a batch, or a loss that is not finite.
    """
    if len(dataset) < options.batch_size:
        raise WsssError(
            f"Expected at least one batch of {options.batch_size} images, found {len(dataset)}."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = ClassTokenViT(config).train()
        init_from_scratch(model)
        optimiser = torch.optim.AdamW(_parameter_groups(model, options), lr=options.rate)
        steps = options.epochs * (len(dataset) // options.batch_size)
        warm_up = max(1, steps // 20)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser,
            lambda step: min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * step / steps)),
        )
        for step, (images, targets) in enumerate(_batches(dataset, config, options)):
            class_logits, patch_logits = model(images)
            loss = classifier_loss(class_logits, patch_logits, targets)
            if not math.isfinite(loss.item()):
                raise WsssError(f"The loss of step {step} is {loss.item()}.", "Lower the rate.")
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            progress(step, loss.item())
    return model.eval()


def _parameter_groups(model: ClassTokenViT, options: TrainOptions) -> list[dict[str, object]]:
    plain = [p for n, p in model.named_parameters() if p.ndim > 1 and n not in _UNDECAYED]
    bare = [p for n, p in model.named_parameters() if p.ndim <= 1 or n in _UNDECAYED]
    return [
        {"params": plain, "weight_decay": options.weight_decay},
        {"params": bare, "weight_decay": 0.0},
    ]


_UNDECAYED = ("cls_token", "pos_embed")


def _batches(
    dataset: Dataset, config: ClassifierConfig, options: TrainOptions
) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled, cropped, flipped batches; a sample's randomness is its (seed, epoch, index)."""
    size = options.batch_size
    with ThreadPoolExecutor(2) as pool:
        for epoch in range(options.epochs):
            order = np.random.RandomState([options.seed, epoch]).permutation(len(dataset))
            for start in range(0, len(order) - size + 1, size):
                chosen = [(dataset.items[n], _rng(options, epoch, n)) for n in order[start:][:size]]
                images = list(
                    pool.map(lambda c: _augment(dataset, c[0], c[1], config, options), chosen)
                )
                targets = torch.zeros(size, len(dataset.class_names))
                for row, (item, _) in enumerate(chosen):
                    targets[row, list(item.labels)] = 1
                yield to_tensor(images, config), targets


def _rng(options: TrainOptions, epoch: int, index: NDArray[np.int64]) -> np.random.RandomState:
    return np.random.RandomState([options.seed, epoch, int(index)])


def _augment(
    dataset: Dataset,
    item: Item,
    rng: np.random.RandomState,
    config: ClassifierConfig,
    options: TrainOptions,
) -> Image.Image:
    """Random resized crop (area from `least_area` up, aspect 3/4 to 4/3) and flip."""
    image = dataset.load_image(item)
    area = image.width * image.height * rng.uniform(options.least_area, 1)
    aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    width = min(image.width, max(1, round(math.sqrt(area * aspect))))
    height = min(image.height, max(1, round(math.sqrt(area / aspect))))
    left, top = rng.randint(image.width - width + 1), rng.randint(image.height - height + 1)
    side = (config.image_size, config.image_size)
    box = (left, top, left + width, top + height)
    image = image.resize(side, Image.Resampling.BILINEAR, box=box)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.rand() < 0.5 else image
