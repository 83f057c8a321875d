"""What training a vision transformer takes besides its samples and its loss."""

from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset

from wsssfast.data.dataset import Dataset
from wsssfast.models.checkpoint import save_model, weights_hash
from wsssfast.models.classifier import ClassTokenViT
from wsssfast.models.segmenter import Segmenter
from wsssfast.models.stochastic_depth import install_drop_path, set_drop_path
from wsssfast.training.fit import Task, require_sizes
from wsssfast.training.optimise import parameter_groups
from wsssfast.training.options import Schedule
from wsssfast.training.samples import Sample
from wsssfast.training.workers import Workers


def vit_task(
    model: ClassTokenViT | Segmenter,
    blocks: nn.Sequential,
    dataset: Dataset,
    held_out: Dataset | None,
    options: Schedule,
    workers: Workers,
    *,
    samples: TorchDataset[Sample],
    loss: Callable[[Any, Tensor], Tensor],
    bare: Collection[str],
    new: Collection[str],
    score: Callable[[Dataset], dict[str, Any]],
    chosen_by: str,
    identity: dict[str, Any],
    start: str = "",
) -> Task:
    """The task of training a model, which is moved to its worker's device.

    Args:
        model: with the weights to start from.
        blocks: its transformer blocks; they get stochastic depth by sample.
        dataset: what is trained on.
        held_out: what is scored after each epoch, if anything.
        options: the schedule.
        workers: this process among those of the run.
        samples: of the data set.
        loss: of the model's output and a batch's targets.
        bare: names of parameters without weight decay, besides all vectors.
        new: names, or beginnings that end in a dot, of what starts untrained.
        score: scores of the model on a data set.
        chosen_by: which of them makes a checkpoint the best.
        identity: what changes the result besides weights, data and options.
        start: what stands for the weights to start from; their hash where empty.

    Raises:
        WsssError: a batch that does not divide among the workers, or more than there are images.
    """
    require_sizes(len(dataset), options, workers)
    whole = {
        "format_version": 1,
        "start": start or weights_hash(model),
        "dataset": dataset.fingerprint,
        "held_out": held_out.fingerprint if held_out else "",
        **identity,
        **{k: v for k, v in options.to_json().items() if k != "accumulate"},
    }
    record = {"options": options.to_json(), "dataset": dataset.name, "split": dataset.split}
    install_drop_path(blocks, options.batch_size // (workers.world * options.accumulate))
    model.to(workers.device)
    return Task(
        model=model,
        samples=samples,
        loss=loss,
        groups=parameter_groups(model, options, bare=bare, new=new),
        prepare=lambda factors: set_drop_path(blocks, factors),
        evaluate=None if held_out is None else lambda: score(held_out),
        chosen_by=chosen_by,
        save=lambda path, row: save_model(model, path, {**record, **row}),
        identity=whole,
    )
