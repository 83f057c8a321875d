"""Train a segmenter straight from label shards."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from wsssfast.data.dataset import IGNORE, Dataset, Mask
from wsssfast.errors import BadFile, WsssError
from wsssfast.evaluate.labels import LabelScorer
from wsssfast.files import output_folder
from wsssfast.memory import give_back, ran_out
from wsssfast.models.segmenter import Segmenter, SegmenterConfig, segmenter_loss
from wsssfast.models.stochastic_depth import draw_factors
from wsssfast.preprocess import to_tensor
from wsssfast.segment import probabilities
from wsssfast.training.fit import Report, Task, fit
from wsssfast.training.masks import Labels, mask_of, with_labels
from wsssfast.training.options import RunOptions, SegmenterOptions
from wsssfast.training.samples import Key, Sample, colour_jitter, randomness, readable
from wsssfast.training.starts import Start, untrained
from wsssfast.training.state import Progress
from wsssfast.training.task import require_classes, task_of
from wsssfast.training.workers import Workers


class SegmenterSamples(TorchDataset[Sample]):
    """Augmented crops with masks as targets, uint8 [S, S].

    Args:
        dataset: whose images; each has a mask in the labels.
        labels: the masks.
        config: whose normalisation to use.
        options: augmentation.
        depth: number of blocks of a ViT, 0 for others.
    """

    def __init__(
        self,
        dataset: Dataset,
        labels: Labels,
        config: SegmenterConfig,
        options: SegmenterOptions,
        depth: int,
    ) -> None:
        self.dataset, self.labels, self.config = dataset, labels, config
        self.options, self.depth = options, depth
        self.jitter = colour_jitter(options.jitter)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Sample:
        """The sample of (epoch, index); an unreadable one gives way to the next readable one.

        Raises:
            WsssError: no image can be read, or a label of another size than its image.
        """
        epoch, index = key
        failed: list[tuple[str, str]] = []
        while True:
            image, index, more = readable(self.dataset, index)
            failed += more
            image_id = self.dataset.items[index].id
            try:
                mask = self.labels.mask(image_id)
                break
            except BadFile as error:
                failed.append((image_id, f"mask: {error}"))
                if len(failed) > len(self.dataset):
                    raise WsssError("Expected masks to train on; not one can be used.") from error
                index = (index + 1) % len(self.dataset)
        if mask.shape != (image.height, image.width):
            raise WsssError(
                f"Expected a label of the size of image {image_id}, {image.height}x{image.width}, "
                f"found {mask.shape[0]}x{mask.shape[1]}.",
                "Make the label shards again from these images.",
            )
        with randomness(self.options.seed, epoch, key[1]) as rng:
            keep = torch.from_numpy(draw_factors(rng, self.options.drop_path, self.depth))
            pixels, target = self._crop(image, mask, rng)
        return Sample(pixels, torch.from_numpy(target), keep, failed)

    def _crop(
        self, image: Image.Image, mask: Mask, rng: np.random.RandomState
    ) -> tuple[Tensor, Mask]:
        """A random square of the resized image and of its mask, mirrored or not.

        Both are resized and cut at once, so that only what is shown is computed.
        """
        options, side = self.options, self.options.crop
        scale = rng.uniform(options.least_scale, options.most_scale)
        source, shown, place = [], [], []
        for length in image.size:  # width, height
            resized = max(1, round(length * scale))
            spare = resized - side
            start = int(rng.randint(abs(spare) + 1))
            begin = start if spare > 0 else 0
            shown.append(min(side, resized))
            source.append((begin * length / resized, (begin + shown[-1]) * length / resized))
            place.append(0 if spare > 0 else start)
        (left, right), (top, bottom) = source
        (width, height), (column, row) = shown, place
        box = (left, top, right, bottom)
        part = image.resize((width, height), Image.Resampling.BICUBIC, box)
        values = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST, box)
        pixels = torch.zeros(3, side, side)
        target = np.full((side, side), IGNORE, np.uint8)
        jittered: Image.Image = self.jitter(part)
        pixels[:, row : row + height, column : column + width] = to_tensor([jittered], self.config)[
            0
        ]
        target[row : row + height, column : column + width] = np.asarray(values)
        if rng.randint(2):
            return pixels.flip(-1), target[:, ::-1].copy()
        return pixels, target


def train_segmenter(
    dataset: Dataset,
    labels: Labels,
    config: SegmenterConfig,
    options: SegmenterOptions,
    out: Path,
    *,
    start: Start = untrained,
    held_out: Dataset | None = None,
    run: RunOptions | None = None,
    workers: Workers | None = None,
    report: Callable[[Report], None] = lambda report: None,
) -> tuple[Segmenter, Progress]:
    """Train on the masks of label shards, or go on training; as `train_classifier` does.

    Args:
        dataset: images; their own masks are not looked at.
        labels: a mask of each image; images without one are left out.
        config: the network.
        options: schedule and augmentation.
        out: folder of the run, made where absent; a run of these options in it is continued.
        start: puts weights into the new network's `core`.
        held_out: scored against its masks after each epoch; its images are not trained on.
        run: how to carry it out.
        workers: this process among those of the run.
        report: called on the first worker now and then.

    Returns:
        The trained model in evaluation mode, and how the run went.

    Raises:
        WsssError: labels of another data set, and what `fit` raises.
    """
    run, workers = run or RunOptions(), workers or Workers()
    model, task = segmenter_task(dataset, labels, config, options, workers, start, held_out)
    output_folder(out, "the run")
    done = fit(task, options, out, run=run, workers=workers, report=report)
    return model.eval(), done


def segmenter_task(
    dataset: Dataset,
    labels: Labels,
    config: SegmenterConfig,
    options: SegmenterOptions,
    workers: Workers,
    start: Start,
    held_out: Dataset | None = None,
) -> tuple[Segmenter, Task]:
    """A new segmenter and the task of training it; arguments as of `train_segmenter`.

    Raises:
        WsssError: labels of other classes or images, or a batch that does not fit.
    """
    require_classes(config, dataset)
    if held_out and all(mask_of(held_out, item) is None for item in held_out):
        raise WsssError(
            f"Expected masks of the images that are held out ({held_out.split}), found none.",
            "They are needed to score; leave --val-split out.",
        )
    dataset = with_labels(dataset, labels, held_out).unlabelled()  # what changes nothing
    readable(dataset, 0)  # at least one image, before any process is started
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = Segmenter(config)
        start(model.net.core)
    if model.net.normalises:
        parts = workers.world * options.accumulate
        if options.batch_size < 2 * parts:
            raise WsssError(
                f"Expected two images or more at a time for this network's batch normalisation, "
                f"found a batch of {options.batch_size} in {parts} parts.",
                "Give a larger --batch-size or fewer parts.",
            )
    blocks = model.net.blocks
    task = task_of(
        model,
        dataset,
        options,
        workers,
        blocks=blocks,
        held_out=held_out,
        samples=SegmenterSamples(dataset, labels, config, options, len(blocks) if blocks else 0),
        loss=partial(_loss, confidence=options.confidence),
        bare=tuple(f"net.vit.{name}" for name in ("cls_token", "pos_embed", "reg_token")),
        new=tuple(f"net.{name}" for name in model.net.new),
        score=lambda found: score_masks(model, found, workers),
        chosen_by="mIoU",
        identity={"labels": labels.identity},
    )
    return model, task


def _loss(scores: Tensor, targets: Tensor, confidence: float) -> Tensor:
    return segmenter_loss(scores, targets.long(), confidence)


def score_masks(model: Segmenter, dataset: Dataset, workers: Workers) -> dict[str, Any]:
    """Scores of the segmenter over a data set with masks, each image at its own size and mirrored.

    Args:
        model: in evaluation mode.
        dataset: images and masks; shared out among the workers.
        workers: this process among them; every one gets the result.

    Returns:
        `mIoU`; `per_class`, the IoU of each class that occurs; `images`, how many; `unreadable`, id
        -> reason of those that were left out.
    """
    workers.share_buffers(model)
    scorer, images = LabelScorer(dataset.class_names), 0
    failed: dict[str, str] = {}
    device = next(model.parameters()).device
    for item in dataset.items[workers.rank :: workers.world]:
        try:
            mask = dataset.load_mask(item)
            if mask is not None:
                image = torch.from_numpy(np.array(dataset.load_image(item))).to(device)
                predicted = probabilities(model, image).argmax(0).to(torch.uint8)
                scorer.add(predicted.cpu().numpy(), mask)
                images += 1
        except (BadFile, WsssError) as error:
            failed[item.id] = str(error)
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            give_back()
            failed[item.id] = "not enough memory to segment it"
    whole, count = LabelScorer(dataset.class_names), 0
    unreadable: dict[str, str] = {}
    for other, found, bad in workers.gather((scorer, images, failed)):
        whole.merge(other)
        count += found
        unreadable |= bad
    result = whole.result()
    return {
        "mIoU": result["miou"], "per_class": result["per_class"], "images": count,
        "unreadable": unreadable,
    }  # fmt: skip
