"""`export-labels`: pseudo-labels into label shards, resumably, from CAM shards or from images."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Event

from wsssfast.cam_options import CamOptions, identity
from wsssfast.compute import require_stages
from wsssfast.data.dataset import Dataset
from wsssfast.errors import BadFile, WsssError
from wsssfast.export import (
    cam_config,
    now_usable,
    require_classes,
    require_positive,
    shards_of,
)
from wsssfast.kernels import CrfBackend
from wsssfast.labels.maker import LabelMaker, Maps, label_maker
from wsssfast.labels.makers import makers, records_of, write_records
from wsssfast.labels.options import VIT, LabelOptions, label_identity
from wsssfast.labels.rules import NOT_FINITE
from wsssfast.models.checkpoint import weights_hash
from wsssfast.models.classifier import ClassTokenViT
from wsssfast.pipeline import ShardWork, compute_shards
from wsssfast.shards.format import DEFAULT_SHARD_SIZE, Sidecar
from wsssfast.shards.reader import CamShards
from wsssfast.shards.resume import ExportSummary
from wsssfast.shards.run import ALONE, Filling, shard_run
from wsssfast.shards.writer import CamRecord, as_stored
from wsssfast.versions import versions

_OF = "cams_sha256"  # key of a label shard's config: the file that it was made from


def export_labels(
    shards: CamShards,
    out: Path,
    options: LabelOptions,
    dataset: Dataset | None = None,
    *,
    device: str = "cpu",
    backend: CrfBackend = "auto",
    network: Path | None = None,
    crf_workers: int = 1,
    filling: Filling = ALONE,
) -> ExportSummary:
    """Make a label shard of each CAM shard: the same images, number and count.

    A label shard that is done is skipped, and redone only if its CAM shard was.

    Args:
        shards: the CAMs; those of their shards that are missing are left out.
        out: folder of the label shards; made where absent.
        options: how masks are made.
        dataset: that the CAMs were made from, where images are looked at.
        device: where refinement runs.
        backend: of the CRF.
        network: checkpoint of the AffinityNet that `options.walk` names.
        crf_workers: processes that refine, on a CPU.
        filling: how the folder is continued, shared with other workers and watched.

    Returns:
        What was done; `failed` are the images that have no CAM, or whose file cannot be read.

    Raises:
        WsssError: an unknown stage, another data set, `out` holds another configuration, a damaged
            CAM shard, the disk is full, or a process died.
    """
    shards.require_stage(options.stage)
    if options.looks:
        _require_images(shards, dataset)
    if options.walk and options.walk.by == VIT:
        raise WsssError(
            "Expected a classifier for a walk over its own attention, found CAM shards, which hold "
            "none.",
            "Give --checkpoint in place of --cams.",
        )
    maker = label_maker(options, dataset, device, backend, crf_workers, network)
    who = label_identity(shards.identity, options)
    sizes = {n: len(s.ids) + len(s.failed) for n, s in shards.sidecars.items()}
    count = next(iter(shards.sidecars.values())).count
    with (
        shard_run(
            out, "labels", who, sizes, count, filling=filling, begin=_begin(maker, crf_workers),
        ) as run,
        makers(maker, crf_workers, Event()) as make,
    ):  # fmt: skip

        def current(index: int, finished: Sidecar) -> bool:
            source = shards.sidecars[index]
            own = [i for i, reason in finished.failed.items()
                   if i not in source.failed and reason != NOT_FINITE]  # fmt: skip
            mended = (_readable(maker, maps) for maps in _stored_maps(shards, own, options.stage))
            return _belongs(finished, source) and not any(mended)

        for index in run.to_do(current):
            source = shards.sidecars[index]
            records, failed = records_of(make, _stored_maps(shards, source.ids, options.stage), run)
            run.pace.advance(len(source.failed), len(source.failed))
            config = {
                **options.to_json(), **maker.about(), "cams": source.config,
                _OF: source.file_sha256,
            }  # fmt: skip
            write_records(run, out, index, count, records, source.failed | failed, who, config)
    return run.summary


def export_labels_of_images(
    model: ClassTokenViT,
    dataset: Dataset,
    out: Path,
    cam_options: CamOptions,
    options: LabelOptions,
    *,
    backend: CrfBackend = "auto",
    network: Path | None = None,
    crf_workers: int = 1,
    shard_size: int = DEFAULT_SHARD_SIZE,
    batch_size: int | None = None,
    decode_workers: int = 2,
    filling: Filling = ALONE,
) -> ExportSummary:
    """From images to label shards; CAMs are never stored.

    The masks are those that `export_cams` and then `export_labels` give, with the same identity.

    Args:
        model: in evaluation mode, on the device that computes CAMs and CRF.
        dataset: what to export.
        out: folder of the label shards; made where absent.
        cam_options: how CAMs are computed; their one stage is that of `options`.
        options: how masks are made.
        backend: of the CRF.
        network: checkpoint of the AffinityNet that `options.walk` names.
        crf_workers: processes that refine, on a CPU; meanwhile the network pauses.
        shard_size: images a shard.
        batch_size: as of `export_cams`.
        decode_workers: decoding threads.
        filling: how the folder is continued, shared with other workers and watched.

    Raises:
        WsssError: as of `export_cams` and `export_labels`.
    """
    require_classes(model, dataset)
    require_stages(model, cam_options.stages)
    if cam_options.stages != (options.stage,):
        raise WsssError(f"Expected the one stage {options.stage}, found {cam_options.stages}.")
    cams = identity(
        dataset.class_names, weights_hash(model), cam_options, dataset.fingerprint, shard_size
    )
    who = label_identity(cams, options)
    shards = shards_of(dataset, shard_size)
    require_positive(batch_size, decode_workers)
    device = next(model.parameters()).device
    maker = label_maker(options, dataset, str(device), backend, crf_workers, network)
    epsilon = cam_options.epsilon(options.stage, len(model.blocks))
    config = {
        **options.to_json(), **maker.about(),
        "cams": cam_config(model, dataset, cam_options, shard_size),
    }  # fmt: skip
    stop = Event()
    with (
        shard_run(
            out, "labels", who, {n: len(items) for n, items in enumerate(shards)}, len(shards),
            filling=filling, begin=_begin(maker, crf_workers),
        ) as run,
        makers(maker, crf_workers, stop) as make,
    ):  # fmt: skip

        def current(index: int, finished: Sidecar) -> bool:
            tried = {i: reason for i, reason in finished.failed.items() if reason != NOT_FINITE}
            fitting = {i: reason for i, reason in tried.items() if _fits(maker, dataset, i)}
            return not now_usable(model, dataset, cam_options, fitting)

        def refine(work: ShardWork) -> None:
            by_size = sorted(work.records, key=lambda record: record.image_size)
            maps = (_as_maps(record, options.stage, epsilon, work) for record in by_size)
            records, failed = records_of(make, maps)
            run.pace.advance(0, len(failed))
            write_records(
                run, out, work.index, len(shards), records, work.failed | failed, who, config
            )

        compute_shards(
            model, dataset, ((n, shards[n]) for n in run.to_do(current)), cam_options, refine,
            batch_size=batch_size, decode_workers=decode_workers, pace=run.pace,
            affinity=options.walk is not None and options.walk.by == VIT,
            overlap=device.type == "cuda", stop=stop,
        )  # fmt: skip
    return run.summary


def _require_images(shards: CamShards, dataset: Dataset | None) -> None:
    """Refuse a data set that the CAMs were not made from.

    Raises:
        WsssError: none, or another.
    """
    config = next(iter(shards.sidecars.values())).config
    made = f"the {config.get('dataset', '?')} data set, split {config.get('split', '?')}"
    if dataset is None:
        raise WsssError(
            f"Expected the images that the CAMs in {shards.folder} were made from ({made}), found "
            "no data set.",
            "Give --dataset, --data-root and --split as for export-cams.",
        )
    if dataset.fingerprint != shards.identity.get("dataset"):
        raise WsssError(
            f"Expected the data set that the CAMs in {shards.folder} were made from ({made}), "
            f"found other images or labels (the {dataset.name} data set, split {dataset.split}).",
            "Give --dataset, --data-root, --split and --labels as for export-cams; for a part of "
            "the images export their CAMs first.",
        )


def _begin(maker: LabelMaker, crf_workers: int) -> dict[str, object]:
    return {
        "device": maker.device,
        "crf_backend": maker.about().get("crf_backend"),
        "crf_workers": crf_workers,
        "config": maker.options.to_json(),
        "versions": versions("numpy", "h5py"),
    }


def _stored_maps(shards: CamShards, ids: Iterable[str], stage: str) -> Iterator[Maps]:
    """Maps of images, those of equal sizes together, so that their lattices are made once."""
    for image_id in sorted(ids, key=shards.image_size):
        labels, size, grids, epsilon = shards.grids(image_id, stage)
        yield Maps(image_id, size, tuple(labels.tolist()), grids, epsilon)


def _readable(maker: LabelMaker, maps: Maps) -> bool:
    """Whether an image that could not be refined can be by now."""
    try:
        maker.image(maps)
    except BadFile:
        return False
    return True


def _fits(maker: LabelMaker, dataset: Dataset, image_id: str) -> bool:
    """Whether there is memory to refine an image; of one that cannot be read, as if there were."""
    item = dataset.by_id[image_id]
    try:
        width, height = dataset.image_size(item)
    except BadFile:
        return True
    return maker.fits((height, width), len(item.labels))


def _as_maps(record: CamRecord, stage: str, epsilon: float, work: ShardWork) -> Maps:
    grids = [as_stored(grid) for grid in record.grids[stage]]
    affinity = work.affinities.get(record.id)
    return Maps(record.id, record.image_size, record.labels, grids, epsilon, affinity)


def _belongs(labels: Sidecar, cams: Sidecar) -> bool:
    """Whether a label shard was made from a CAM shard as it is now."""
    same_file = labels.config.get(_OF) == cams.file_sha256
    return same_file and cams.failed.items() <= labels.failed.items()
