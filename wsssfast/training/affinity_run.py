"""From CAM shards to a trained AffinityNet: labels of cells, then the training loop."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from wsssfast.data.dataset import Dataset
from wsssfast.files import output_folder
from wsssfast.kernels import CrfBackend
from wsssfast.labels.options import LabelOptions
from wsssfast.labels.run import export_labels
from wsssfast.models.affinity import STRIDE, AffinityConfig, AffinityNet
from wsssfast.shards.label_shards import LabelShards
from wsssfast.shards.reader import CamShards
from wsssfast.shards.resume import ExportSummary
from wsssfast.shards.run import ALONE, Filling
from wsssfast.training.affinity import AffinitySamples, affinity_loss
from wsssfast.training.fit import Report, Task, fit
from wsssfast.training.masks import with_labels
from wsssfast.training.options import AffinityOptions, RunOptions
from wsssfast.training.samples import readable
from wsssfast.training.starts import Start, untrained
from wsssfast.training.state import Progress
from wsssfast.training.task import require_classes, task_of
from wsssfast.training.workers import Workers

CELLS = "cells"  # folder of the labels, inside that of the run


def label_cells(
    cams: CamShards,
    dataset: Dataset,
    out: Path,
    options: LabelOptions,
    *,
    device: str = "cpu",
    backend: CrfBackend = "auto",
    crf_workers: int = 1,
    filling: Filling = ALONE,
) -> ExportSummary:
    """Labels of 8 x 8 cells from CAMs, made once for a run and kept in its folder.

    Two background exponents give PSA's: what the CRFs with more and with less background do not
    agree on is ignored.

    Args:
        cams: CAM shards.
        dataset: that they were made from.
        out: folder of the run.
        options: of the CRF and the background.
        device: as of `export_labels`, like all that follow.
        backend: of the CRF.
        crf_workers: processes that refine, on a CPU.
        filling: as of `export_labels`.

    Raises:
        WsssError: as of `export_labels`.
    """
    return export_labels(
        cams, out / CELLS, replace(options, cell=STRIDE), dataset, device=device,
        backend=backend, crf_workers=crf_workers, filling=filling,
    )  # fmt: skip


def train_affinity(
    dataset: Dataset,
    cells: LabelShards,
    config: AffinityConfig,
    options: AffinityOptions,
    out: Path,
    *,
    start: Start = untrained,
    run: RunOptions | None = None,
    workers: Workers | None = None,
    report: Callable[[Report], None] = lambda report: None,
) -> tuple[AffinityNet, Progress]:
    """Train, or go on training; the same arguments give the same weights on the same machine.

    Args:
        dataset: images; neither their labels nor their masks are looked at.
        cells: from `label_cells`; images without are left out.
        config: the network.
        options: schedule and augmentation.
        out: folder of the run, made where absent; a run of these options in it is continued.
        start: puts weights into the new network's `core`.
        run: how to carry it out.
        workers: this process among those of the run.
        report: called on the first worker now and then.

    Returns:
        The trained network in evaluation mode, and how the run went.

    Raises:
        WsssError: labels of other classes, or what `fit` raises.
    """
    run, workers = run or RunOptions(), workers or Workers()
    net, task = affinity_task(dataset, cells, config, options, workers, start)
    output_folder(out, "the run")
    done = fit(task, options, out, run=run, workers=workers, report=report)
    return net.eval(), done


def affinity_task(
    dataset: Dataset,
    cells: LabelShards,
    config: AffinityConfig,
    options: AffinityOptions,
    workers: Workers,
    start: Start,
) -> tuple[AffinityNet, Task]:
    """A new AffinityNet and the task of training it; arguments as of `train_affinity`.

    Raises:
        WsssError: labels of other classes, or a batch that does not fit.
    """
    require_classes(config, dataset)
    dataset = with_labels(dataset, cells)
    readable(dataset, 0)  # at least one image, before any process is started
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        net = AffinityNet(config)
        start(net.core)
    task = task_of(
        net,
        dataset,
        options,
        workers,
        samples=AffinitySamples(dataset, cells, config, options),
        loss=affinity_loss,
        new=("f8_3.", "f8_4.", "f8_5.", "f9.", "trunk.norms."),
        bias_rate=options.bias_rate,
        identity={"cells": cells.identity},
    )
    return net, task
