"""`export-cams`: run a classifier over a data set and leave CAM shards, resumably."""

from pathlib import Path
from typing import Any

from wsssfast.cam_options import CamOptions, identity
from wsssfast.compute import require_stages
from wsssfast.data.dataset import Dataset, Item
from wsssfast.errors import BadFile, WsssError
from wsssfast.kernels.backend import for_device
from wsssfast.memory import most_images
from wsssfast.models.checkpoint import weights_hash
from wsssfast.models.classifier import ClassTokenViT
from wsssfast.models.segmenter import Segmenter
from wsssfast.pipeline import NO_CAM, ShardWork, compute_shards
from wsssfast.shards.format import DEFAULT_SHARD_SIZE, MOST_SHARDS, Sidecar
from wsssfast.shards.resume import ExportSummary
from wsssfast.shards.run import ALONE, Filling, shard_run
from wsssfast.shards.writer import write_cam_shard
from wsssfast.versions import versions


def export_cams(
    model: ClassTokenViT,
    dataset: Dataset,
    out: Path,
    options: CamOptions,
    *,
    shard_size: int = DEFAULT_SHARD_SIZE,
    batch_size: int | None = None,
    decode_workers: int = 2,
    filling: Filling = ALONE,
) -> ExportSummary:
    """Export the CAMs of a data set.

    Shards are `shard_size` images each of the sorted id list. A shard that is done is skipped, and
    redone only if an image that it lists as unreadable can be read by now.

    Args:
        model: in evaluation mode, on the device to use.
        dataset: what to export.
        out: folder of the shards; made where absent.
        options: what to compute.
        shard_size: images a shard.
        batch_size: most images of equal size in one forward pass; by size and device where None.
        decode_workers: decoding threads.
        filling: how the folder is continued, shared with other workers and watched.

    Raises:
        WsssError: `out` holds another configuration, another run is writing there, the classes
            differ, or the disk is full.
    """
    require_classes(model, dataset)
    require_stages(model, options.stages)
    who = identity(
        dataset.class_names, weights_hash(model), options, dataset.fingerprint, shard_size
    )
    shards = shards_of(dataset, shard_size)
    require_positive(batch_size, decode_workers)
    depth = len(model.blocks)
    config = cam_config(model, dataset, options, shard_size)
    packages = versions("numpy", "h5py")
    begin = {
        "batch_size": batch_size or "auto", "decode_workers": decode_workers,
        "device": str(next(model.parameters()).device), "config": config, "versions": packages,
    }  # fmt: skip
    with shard_run(
        out, "cams", who, {n: len(items) for n, items in enumerate(shards)}, len(shards),
        filling=filling, begin=begin,
    ) as run:  # fmt: skip

        def current(index: int, finished: Sidecar) -> bool:
            return not now_usable(model, dataset, options, finished.failed)

        def write(work: ShardWork) -> None:
            run.write(work.index, lambda: write_cam_shard(
                out, work.index, len(shards), work.records, failed=work.failed, identity=who,
                epsilons={s: options.epsilon(s, depth) for s in options.stages},
                config=config, versions=packages,
            ))  # fmt: skip

        compute_shards(
            model, dataset, ((n, shards[n]) for n in run.to_do(current)), options, write,
            batch_size=batch_size, decode_workers=decode_workers, pace=run.pace,
        )  # fmt: skip
    return run.summary


def shards_of(dataset: Dataset, shard_size: int) -> list[tuple[Item, ...]]:
    """The items of each shard: so many each of the sorted id list.

    Raises:
        WsssError: there would be too many, or none.
    """
    if shard_size < 1:
        raise WsssError(f"Expected a shard size of at least 1, found {shard_size}.")
    count = -(-len(dataset) // shard_size)
    if count > MOST_SHARDS:
        raise WsssError(
            f"Expected at most {MOST_SHARDS} shards, found {count}.", "Give a larger --shard-size."
        )
    return [dataset.items[n * shard_size : (n + 1) * shard_size] for n in range(count)]


def require_positive(batch_size: int | None, decode_workers: int) -> None:
    """Refuse a batch size or a number of decoding threads below 1.

    Raises:
        WsssError: it is.
    """
    if decode_workers < 1 or (batch_size is not None and batch_size < 1):
        raise WsssError(
            f"Expected a batch size and decoding threads of at least 1, found {batch_size} and "
            f"{decode_workers}."
        )


def require_classes(model: ClassTokenViT | Segmenter, dataset: Dataset) -> None:
    """Refuse a model whose classes are not those of the data set.

    Raises:
        WsssError: another number or order of classes.
    """
    theirs, ours = model.config.class_names, dataset.class_names
    assumed = getattr(model.config, "names_assumed", False)
    if len(theirs) != len(ours) or (theirs != ours and not assumed):
        differ = next(
            (a, b) for a, b in zip((*theirs, "none"), (*ours, "none"), strict=False) if a != b
        )
        raise WsssError(
            f"Expected a checkpoint of the data set's {len(ours)} classes, found one of "
            f"{len(theirs)} (the first that differs: {differ[0]!r} against {differ[1]!r}).",
            "Give the checkpoint that was trained for this data set.",
        )


def now_usable(
    model: ClassTokenViT, dataset: Dataset, options: CamOptions, failed: dict[str, str]
) -> bool:
    """Whether any image that could not be used, for the reason given, can be by now."""
    for image_id, reason in failed.items():
        if image_id not in dataset.by_id or reason.startswith(NO_CAM):
            continue
        item = dataset.by_id[image_id]
        try:
            size = dataset.image_size(item)
            if most_images(model, size, options) and dataset.load_image(item).size == size:
                return True
        except BadFile:
            continue
    return False


def cam_config(
    model: ClassTokenViT, dataset: Dataset, options: CamOptions, shard_size: int
) -> dict[str, Any]:
    """Resolved options, as stored beside the numbers."""
    return {
        "dataset": dataset.name,
        "split": dataset.split,
        "labels": f"image-level labels of the data set ({dataset.label_source})"
        if options.predict_above is None
        else f"classes that the classifier gives a score above {options.predict_above:g}",
        "shard_size": shard_size,
        "kernels": for_device(next(model.parameters()).device),
        **options.to_json(),
    }
