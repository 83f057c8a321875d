"""Train the small segmenter straight from label shards."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from wsssfast.data.dataset import Dataset, Mask
from wsssfast.errors import BadFile, WsssError, listing
from wsssfast.evaluate.labels import LabelScorer
from wsssfast.evaluate.masks import naming
from wsssfast.files import output_folder
from wsssfast.models.classifier import ClassifierConfig, ClassTokenViT
from wsssfast.models.segmenter import Segmenter, segment, segmenter_loss, start_from_classifier
from wsssfast.models.stochastic_depth import draw_factors
from wsssfast.preprocess import to_tensor
from wsssfast.shards.label_shards import LabelShards
from wsssfast.training.fit import Report, fit
from wsssfast.training.options import RunOptions, Schedule, require
from wsssfast.training.samples import Key, Sample, randomness, readable
from wsssfast.training.state import Progress
from wsssfast.training.task import task_of
from wsssfast.training.workers import Workers


@dataclass(frozen=True)
class SegmenterOptions(Schedule):
    """How the segmenter is trained: the schedule, and what is done to the images.

    Attributes:
        drop_path: largest probability of stochastic depth, reached in the last layer.
        least_area: smallest share of the image that a random crop shows.
        jitter: strength of random brightness, contrast and saturation.
    """

    drop_path: float = 0.1
    least_area: float = 0.3
    jitter: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, ("jitter",), 0, 1)
        require(self, ("drop_path",), 0, 0.95)
        require(self, ("least_area",), 1e-3, 1)


class SegmenterSamples(TorchDataset[Sample]):
    """Augmented images with masks from label shards as targets, int64 [S, S].

    Args:
        dataset: whose images; each has a mask in the shards.
        shards: the masks.
        config: whose image size and normalisation to use.
        options: augmentation.
        depth: number of blocks of the network.
    """

    def __init__(
        self,
        dataset: Dataset,
        shards: LabelShards,
        config: ClassifierConfig,
        options: SegmenterOptions,
        depth: int,
    ) -> None:
        self.dataset, self.shards, self.config = dataset, shards, config
        self.options, self.depth = options, depth
        self.joint = v2.Compose(
            [
                v2.RandomResizedCrop(
                    config.image_size,
                    scale=(options.least_area, 1.0),
                    interpolation=InterpolationMode.BICUBIC,
                ),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(options.jitter, options.jitter, options.jitter),
            ]
        )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Sample:
        """The sample of (epoch, index); an unreadable image gives way to the next readable one.

        Raises:
            WsssError: no image can be read, or a mask of another size than its image.
        """
        epoch, index = key
        image, index, failed = readable(self.dataset, index)
        image_id = self.dataset.items[index].id
        mask = self.shards.mask(image_id)
        if mask.shape != (image.height, image.width):
            raise WsssError(
                f"Expected a label of the size of image {image_id}, {image.height}x{image.width}, "
                f"found {mask.shape[0]}x{mask.shape[1]}.",
                "Make the label shards again from these images.",
            )
        with randomness(self.options.seed, epoch, key[1]) as rng:
            keep = torch.from_numpy(draw_factors(rng, self.options.drop_path, self.depth))
            picture, target = self.joint(image, tv_tensors.Mask(torch.from_numpy(mask)[None]))
        tensor = to_tensor([picture], self.config)[0]
        return Sample(tensor, target[0].as_subclass(Tensor).to(torch.int64), keep, failed)


def train_segmenter(
    dataset: Dataset,
    shards: LabelShards,
    config: ClassifierConfig,
    options: SegmenterOptions,
    out: Path,
    *,
    classifier: ClassTokenViT | None = None,
    held_out: Dataset | None = None,
    run: RunOptions | None = None,
    workers: Workers | None = None,
    report: Callable[[Report], None] = lambda report: None,
) -> tuple[Segmenter, Progress]:
    """Train on the masks of label shards, or go on training; as `train_classifier` does.

    Args:
        dataset: images; their own masks are not looked at.
        shards: a mask of each image; images without one are left out.
        config: of the network.
        options: schedule and augmentation.
        out: folder of the run, made where absent; a run of these options in it is continued.
        classifier: to start from.
        held_out: scored against its masks after each epoch, never trained on.
        run: how to carry it out.
        workers: this process among those of the run.
        report: called on the first worker now and then.

    Returns:
        The trained model in evaluation mode, and how the run went.

    Raises:
        WsssError: shards of another data set, and what `fit` raises.
    """
    run, workers = run or RunOptions(), workers or Workers()
    dataset = with_labels(dataset, shards)
    output_folder(out, "the run")
    readable(dataset, 0)  # at least one image, before any process is started
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = Segmenter(config)
        if classifier is not None:
            start_from_classifier(model, classifier)
    blocks = model.encoder.blocks
    task = task_of(
        model,
        dataset,
        options,
        workers,
        blocks=blocks,
        held_out=held_out,
        samples=SegmenterSamples(dataset, shards, config, options, len(blocks)),
        loss=segmenter_loss,
        bare=("encoder.cls_token", "encoder.pos_embed"),
        new=("norm.", "decoder."),
        score=lambda found: score_masks(model, found, workers),
        chosen_by="mIoU",
        identity={"labels": shards.identity},
    )
    done = fit(task, options, out, run=run, workers=workers, report=report)
    return model.eval(), done


def score_masks(model: Segmenter, dataset: Dataset, workers: Workers) -> dict[str, Any]:
    """Scores of the segmenter over a data set with masks, each image at its own size.

    Args:
        model: in evaluation mode.
        dataset: images and masks; shared out among the workers.
        workers: this process among them; every one gets the result.

    Returns:
        `mIoU` and the result of `LabelScorer`; `images`, how many; `unreadable`, id -> reason of
        those that were left out.
    """
    scorer, images = LabelScorer(dataset.class_names), 0
    failed: dict[str, str] = {}
    for item in dataset.items[workers.rank :: workers.world]:
        try:
            mask = dataset.load_mask(item)
            if mask is not None:
                with naming(item.id):
                    scorer.add(predict_mask(model, dataset, item.id), mask)
                images += 1
        except BadFile as error:
            failed[item.id] = str(error)
    whole, count = LabelScorer(dataset.class_names), 0
    unreadable: dict[str, str] = {}
    for other, found, bad in workers.gather((scorer, images, failed)):
        whole.merge(other)
        count += found
        unreadable |= bad
    result = whole.result()
    return {"mIoU": result["miou"], **result, "images": count, "unreadable": unreadable}


def predict_mask(model: Segmenter, dataset: Dataset, image_id: str) -> Mask:
    """The predicted mask uint8 [H, W] of one image of a data set, at its own size."""
    image = dataset.load_image(dataset.by_id[image_id])
    device = next(model.parameters()).device
    mask: Mask = segment(model, to_tensor([image], model.config).to(device))[0].cpu().numpy()
    return mask


def with_labels(dataset: Dataset, shards: LabelShards) -> Dataset:
    """The images that have a mask in the shards."""
    if shards.class_names != dataset.class_names:
        raise WsssError(
            f"Expected label shards of the data set's {len(dataset.class_names)} classes, found "
            f"{len(shards.class_names)} others in {shards.folder}."
        )
    have = set(shards.ids)
    unknown = sorted(have - dataset.by_id.keys())
    if unknown:
        raise WsssError(
            f"Expected label shards of images of this data set, found {listing(unknown)}.",
            "Give the --data-root and --split that the shards were made from.",
        )
    return dataset.subset(lambda n, item: item.id in have, dataset.split)
