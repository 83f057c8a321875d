"""Train the classifier on image-level labels (Eqs. 7-11)."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from wsssfast.data.dataset import Dataset
from wsssfast.errors import BadFile
from wsssfast.evaluate.scores import mean_of
from wsssfast.files import output_folder
from wsssfast.models.classifier import ClassTokenViT, init_from_backbone
from wsssfast.models.classifier_config import ClassifierConfig
from wsssfast.models.losses import classifier_loss
from wsssfast.models.scratch import init_from_scratch
from wsssfast.preprocess import to_tensor
from wsssfast.training.fit import Report, Task, fit
from wsssfast.training.options import ClassifierOptions, RunOptions
from wsssfast.training.samples import ClassifierSamples, readable
from wsssfast.training.state import Progress
from wsssfast.training.task import task_of
from wsssfast.training.workers import Workers


def train_classifier(
    dataset: Dataset,
    config: ClassifierConfig,
    options: ClassifierOptions,
    out: Path,
    *,
    backbone: dict[str, Tensor] | None = None,
    held_out: Dataset | None = None,
    run: RunOptions | None = None,
    report: Callable[[Report], None] = lambda report: None,
) -> tuple[ClassTokenViT, Progress]:
    """Train, or go on training; the same arguments give the same weights on the same machine.

    Args:
        dataset: images and labels; masks are not looked at.
        config: the network.
        options: schedule and augmentation.
        out: folder of the run, made where absent; a run of these options in it is continued.
        backbone: ImageNet weights to start from; from scratch where None.
        held_out: scored after each epoch, never trained on.
        run: how to carry it out.
        report: called now and then.

    Returns:
        The trained model in evaluation mode, and how the run went.

    Raises:
        WsssError: what `classifier_task` and `fit` raise.
    """
    model, task = classifier_task(dataset, config, options, Workers(), backbone, held_out)
    output_folder(out, "the run")
    done = fit(task, options, out, run=run, report=report)
    return model.eval(), done


def classifier_task(
    dataset: Dataset,
    config: ClassifierConfig,
    options: ClassifierOptions,
    workers: Workers,
    backbone: dict[str, Tensor] | None = None,
    held_out: Dataset | None = None,
) -> tuple[ClassTokenViT, Task]:
    """A new classifier and the task of training it; whatever does not fit is refused here.

    Args:
        dataset: images and labels.
        config: the network.
        options: schedule and augmentation.
        workers: this process among those of the run.
        backbone: ImageNet weights to start from; from scratch where None.
        held_out: scored after each epoch.

    Raises:
        WsssError: options that do not fit data or network, weights of another architecture, or no
            image that can be read.
    """
    readable(dataset, 0)  # at least one image, before any process is started
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = ClassTokenViT(config)
        model.keeps_tokens = options.contrast > 0
        if backbone is None:
            init_from_scratch(model)
        else:
            init_from_backbone(model, backbone)
    task = task_of(
        model,
        dataset,
        options,
        workers,
        blocks=model.blocks,
        held_out=held_out,
        samples=ClassifierSamples(dataset, config, options, len(model.blocks)),
        loss=partial(classifier_loss, contrast=options.contrast),
        bare=("cls_token", "pos_embed", "reg_token"),
        new=("cls_token", "head.", "fusion."),
        score=lambda found: score_labels(model, found, workers),
        chosen_by="mAP",
        identity={"class_names": list(config.class_names)},
        # from scratch the weights depend on the number of threads: an SVD draws them
        start="" if backbone else f"scratch {config.to_json()}",
    )
    return model, task


@torch.no_grad()
def score_labels(
    model: ClassTokenViT, dataset: Dataset, workers: Workers, batch_size: int = 32
) -> dict[str, Any]:
    """Average precision of the classifier over a data set, each image resized to a square.

    Args:
        model: in evaluation mode.
        dataset: images and labels; shared out among the workers.
        workers: this process among them; every one gets the result.
        batch_size: images a forward pass.

    Returns:
        `mAP` (class logits, Eq. 7) and, with a patch head, `mAP_patch` (Eq. 9), means over the
        classes that occur; `AP`, per class of the class logits; `images`; `unreadable`, id ->
        reason of those that were left out.
    """
    side = model.config.image_size
    scores: list[NDArray[np.float32]] = []
    truth: list[tuple[int, ...]] = []
    failed: dict[str, str] = {}
    waiting: list[Image.Image] = []

    def score() -> None:
        if waiting:
            logits = model(to_tensor(waiting, model.config).to(workers.device))
            both = [part for part in (logits.classes, logits.patches) if part is not None]
            scores.append(torch.stack(both, 1).float().cpu().numpy())
            waiting.clear()

    for item in dataset.items[workers.rank :: workers.world]:
        try:
            image = dataset.load_image(item)
        except BadFile as error:
            failed[item.id] = str(error)
            continue
        waiting.append(image.resize((side, side), Image.Resampling.BICUBIC))
        truth.append(item.labels)
        if len(waiting) == batch_size:
            score()
    score()
    gathered = workers.gather((scores, truth, failed))
    parts = [part for found, _, _ in gathered for part in found]
    labels = [classes for _, found, _ in gathered for classes in found]
    table = np.concatenate(parts) if parts else np.zeros((0, 1, model.num_classes), np.float32)
    target = np.zeros((len(labels), model.num_classes), bool)
    for row, classes in enumerate(labels):
        target[row, list(classes)] = True
    names = model.config.class_names
    result: dict[str, Any] = {
        key: average_precision(target, table[:, n], names)
        for n, key in enumerate(("AP", "AP_patch")[: table.shape[1]])
    }
    for key in list(result):
        result[f"m{key}"] = mean_of(result[key])
    result.pop("AP_patch", None)
    unreadable = {k: v for _, _, bad in gathered for k, v in bad.items()}
    return {**result, "images": len(labels), "unreadable": unreadable}


def average_precision(
    target: NDArray[np.bool_], scores: NDArray[np.float32], names: tuple[str, ...]
) -> dict[str, float]:
    """Average precision of each class that has a positive and a score.

    Args:
        target: [images, C].
        scores: [images, C], any order-preserving measure.
        names: of the classes.
    """
    from sklearn.metrics import average_precision_score

    return {
        name: float(average_precision_score(target[:, c], scores[:, c]))
        for c, name in enumerate(names)
        if target[:, c].any()
    }
