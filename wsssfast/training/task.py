"""What every training here takes besides its samples, its loss and its scores."""

from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset

from wsssfast.data.dataset import Dataset
from wsssfast.errors import WsssError
from wsssfast.models.affinity import AffinityConfig, AffinityNet
from wsssfast.models.checkpoint import save_model, weights_hash
from wsssfast.models.classifier import ClassTokenViT
from wsssfast.models.segmenter import Segmenter, SegmenterConfig
from wsssfast.models.stochastic_depth import install_drop_path, set_drop_path
from wsssfast.training.fit import Task, require_sizes
from wsssfast.training.optimise import parameter_groups
from wsssfast.training.options import Schedule
from wsssfast.training.samples import Sample
from wsssfast.training.workers import Workers


def require_classes(config: AffinityConfig | SegmenterConfig, dataset: Dataset) -> None:
    """Refuse a network of other classes than the data set's.

    Raises:
        WsssError: these differ in name, number or order.
    """
    if config.class_names != dataset.class_names:
        raise WsssError(
            f"Expected a network of the data set's {len(dataset.class_names)} classes, found one "
            f"of {len(config.class_names)} others."
        )


def task_of(
    model: ClassTokenViT | Segmenter | AffinityNet,
    dataset: Dataset,
    options: Schedule,
    workers: Workers,
    *,
    samples: TorchDataset[Sample],
    loss: Callable[[Any, Tensor], Tensor],
    new: Collection[str],
    identity: dict[str, Any],
    start: str = "",
    bare: Collection[str] = (),
    bias_rate: float = 1.0,
    blocks: nn.Sequential | None = None,
    held_out: Dataset | None = None,
    score: Callable[[Dataset], dict[str, Any]] | None = None,
    chosen_by: str = "",
) -> Task:
    """The task of training a model, which is moved to its worker's device.

    Args:
        model: with the weights to start from.
        dataset: what is trained on.
        options: the schedule.
        workers: this process among those of the run.
        samples: of the data set.
        loss: of the model's output and a batch's targets.
        new: names, or beginnings that end in a dot, of what starts untrained.
        identity: what changes the result besides weights, data and options.
        start: what stands for the weights to start from; their hash where empty.
        bare: names of parameters without weight decay, besides all vectors.
        bias_rate: factor on the rate of biases.
        blocks: its transformer blocks, which get stochastic depth by sample; None for none.
        held_out: what is scored after each epoch, if anything.
        score: scores of the model on a data set, where there are any.
        chosen_by: which of them makes a checkpoint the best.

    Raises:
        WsssError: a batch that does not divide among the workers, or more than there are images.
    """
    require_sizes(len(dataset), options, workers)
    whole = {
        "format_version": 1,
        "start": start or weights_hash(model),
        "dataset": dataset.fingerprint,
        **identity,
        **{k: v for k, v in options.to_json().items() if k != "accumulate"},
    }
    if score:
        whole["held_out"] = held_out.fingerprint if held_out else ""
    record = {"options": options.to_json(), "dataset": dataset.name, "split": dataset.split}
    if blocks is not None:
        install_drop_path(blocks, options.batch_size // (workers.world * options.accumulate))
    model.to(workers.device)
    return Task(
        model=model,
        samples=samples,
        loss=loss,
        groups=parameter_groups(model, options, bare=bare, new=new, bias_rate=bias_rate),
        prepare=lambda factors: None if blocks is None else set_drop_path(blocks, factors),
        evaluate=None if score is None or held_out is None else lambda: score(held_out),
        chosen_by=chosen_by,
        save=lambda path, row: save_model(model, path, {**record, **row}),
        identity=whole,
    )
