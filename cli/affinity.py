"""`wsssfast train-affinity`."""

from pathlib import Path
from typing import Any, Literal

import click

from wsssfast.cli.data_options import Data, dataset_options
from wsssfast.cli.fields import pick_fields
from wsssfast.cli.options import finish, pick_device, refuse
from wsssfast.cli.paths import CAMS, FILE
from wsssfast.cli.refine_options import CRF, background_options, crf_options, pick_crf
from wsssfast.cli.training import progress, settings_of, tell, training_options
from wsssfast.cli.watching import watching
from wsssfast.torchrun import own_cores
from wsssfast.training.options import AffinityOptions, RunOptions

_EXPONENTS = (1.0, 12.0)  # [M], method §6


@click.command()
@click.option("--cams", type=CAMS, required=True, help="Folder of the CAM shards.")
@dataset_options
@click.option("--out", type=FILE, required=True, help="Folder of the run.")
@click.option(
    "--trunk",
    default="resnet38",
    show_default=True,
    help="resnet38; vit: a classifier's network; or a convolutional network of timm (resnet50).",
)
@click.option(
    "--pretrained",
    metavar="FILE|timm|none",
    help="Weights of the trunk: of resnet38 a published file, of vit the classifier's checkpoint, "
    "of timm's a file or, by default, a download.",
)
@click.option(
    "--boundary/--no-boundary",
    default=False,
    show_default=True,
    help="Find boundaries, as IRN does, in place of features.",
)
@click.option("--stage", help="Which stage of the CAMs; the last stored by default.")
@background_options
@click.option(
    "--refine",
    type=click.Choice(["none", "crf"]),
    default="crf",
    show_default=True,
    help="What is done to the scores that labels are made of.",
)
@crf_options
@training_options(AffinityOptions, "affinity")
@click.pass_context
def train_affinity(
    ctx: click.Context,
    /,
    cams: Path,
    data: Data,
    out: Path,
    trunk: str,
    pretrained: str | None,
    boundary: bool,
    stage: str | None,
    background: tuple[float, ...],
    background_exponent: tuple[float, ...],
    refine: Literal["none", "crf"],
    certainty: float | None,
    crf_backend: Literal["auto", "pydensecrf", "torch", "triton"],
    crf_workers: int | None,
    device: str,
    resume: bool,
    overwrite: bool,
    recipe: str | None,
    json_path: str | None,
    **fields: Any,
) -> None:
    """Train AffinityNet: which near cells of an image belong together.

    CAM shards and a CRF give labels of 8 x 8 cells, which are kept in the run's folder; where two
    backgrounds (exponents 1 and 12 by default) do not agree, cells are ignored. Leaves
    last.safetensors, for `export-labels --refine affinity`. Interrupted, the same command goes on
    exactly where it stopped. Several GPUs:
    torchrun --nproc-per-node 8 -m wsssfast train-affinity …

    \b
    Example:
      wsssfast train-affinity --cams cams --dataset voc --data-root VOCdevkit/VOC2012 \\
          --split train_aug --recipe mctformer-voc --pretrained res38_cls.pth --out affinity
      wsssfast train-affinity --cams cams --dataset voc --data-root VOCdevkit/VOC2012 \\
          --split train_aug --trunk vit --pretrained run/last.safetensors --out affinity
    """  # fmt: skip
    if refine == "none":
        refuse(ctx, [*CRF, "certainty", "crf_backend", "crf_workers"], "--refine crf")
    crf = pick_crf(fields)
    options = AffinityOptions(**pick_fields(AffinityOptions, fields))
    run = RunOptions(**pick_fields(RunOptions, fields))
    from wsssfast.labels.options import LabelOptions
    from wsssfast.models.affinity import AffinityConfig
    from wsssfast.shards import CamShards
    from wsssfast.shards.label_shards import LabelShards
    from wsssfast.shards.run import Filling
    from wsssfast.training.affinity_run import CELLS, affinity_task, label_cells
    from wsssfast.training.fit import fit
    from wsssfast.training.folder import run_folder
    from wsssfast.training.starts import start_of
    from wsssfast.training.workers import join_workers

    shards = CamShards(cams)
    dataset = data.open_for(shards.class_names)
    if not background and not background_exponent:
        background_exponent = _EXPONENTS
    how = LabelOptions(
        stage or shards.stages[-1], background, background_exponent, refine, crf, certainty
    )
    about, start = start_of(trunk, pretrained)
    config = AffinityConfig(dataset.class_names, **about, boundary=boundary)
    settings = settings_of(dataset)
    labelled = set(shards.ids)
    trained_on = dataset.subset(lambda n, item: item.id in labelled, dataset.split)
    with (
        join_workers(pick_device(device)) as workers,
        run_folder(out, trained_on, None, settings, workers, resume=resume, overwrite=overwrite),
    ):
        on_gpu = workers.device != "cpu" and crf_backend != "pydensecrf"
        with watching("labels of cells", None) as watch:
            label_cells(
                shards, dataset, out, how,
                device=workers.device, backend=crf_backend,
                crf_workers=crf_workers or (1 if on_gpu or refine == "none" else own_cores()),
                filling=Filling(worker=(workers.rank, workers.world), watch=watch),
            )  # fmt: skip
        workers.gather(None)  # all labels are there
        cells = LabelShards(out / CELLS)
        _, task = affinity_task(dataset, cells, config, options, workers, start)
        with progress("train-affinity", workers.first) as report:
            done = fit(task, options, out, run=run, workers=workers, report=report)
        if not workers.first:
            return
    done.failed = {**cells.failed, **done.failed}
    tell(out, done, json_path)
    finish(done.failed, shards.missing_names, cams)
