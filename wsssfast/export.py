"""`export-cams`: run a classifier over a data set and leave CAM shards, resumably."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from wsssfast.compute import CamOptions, identity, most_images, require_stages, stage_grids
from wsssfast.data.dataset import Dataset, Item
from wsssfast.errors import BadFile, WsssError
from wsssfast.kernels.backend import for_device
from wsssfast.loader import load_batches
from wsssfast.models.checkpoint import weights_hash
from wsssfast.models.classifier import ClassTokenViT
from wsssfast.shards.format import DEFAULT_SHARD_SIZE, Sidecar, canonical, stored_bytes
from wsssfast.shards.lock import folder_lock
from wsssfast.shards.resume import (
    ExportSummary,
    done_shard,
    done_shards,
    telling_full_disk,
)
from wsssfast.shards.writer import CamRecord, write_cam_shard
from wsssfast.versions import versions

_NO_CAM = "no CAM: "  # begins the reason of an image that was read but has none


def export_cams(
    model: ClassTokenViT,
    dataset: Dataset,
    out: Path,
    options: CamOptions,
    *,
    shard_size: int = DEFAULT_SHARD_SIZE,
    batch_size: int = 8,
    decode_workers: int = 2,
    resume: bool = True,
    overwrite: bool = False,
    worker: tuple[int, int] = (0, 1),
    progress: Callable[[int], None] = lambda images: None,
) -> ExportSummary:
    """Export the CAMs of a data set.

    Shards are `shard_size` images each of the sorted id list. A shard that is done is skipped, and
    redone only if an image that it lists as unreadable can be read by now. Of several workers each
    begins with shards of its own, every n-th, and goes on with those that no other has begun: a
    slow or dead worker's are done by the others, or by the next run.

    Args:
        model: in evaluation mode, on the device to use.
        dataset: what to export.
        out: folder of the shards; made where absent.
        options: what to compute.
        shard_size: images a shard.
        batch_size: most images of equal size in one forward pass.
        decode_workers: decoding threads.
        resume: whether a folder that holds shards of this configuration is continued.
        overwrite: discard the shards in `out` first; not with several workers.
        worker: (i, n), this is the i-th of n that share the folder, from 0.
        progress: called with a number of images each time some are finished.

    Raises:
        WsssError: `out` holds another configuration, another run is writing there, the classes
            differ, or the disk is full.
    """
    require_classes(model, dataset)
    require_stages(model, options.stages)
    if min(shard_size, batch_size, decode_workers) < 1:
        raise WsssError("Expected a shard size, batch size and number of workers of at least 1.")
    rank, workers = worker
    if not 0 <= rank < workers:
        raise WsssError(f"Expected a worker i/n with 0 <= i < n, found {rank}/{workers}.")
    if workers > 1 and (overwrite or not resume):
        raise WsssError("Expected --resume and no --overwrite of several workers in one folder.")
    who = identity(
        dataset.class_names, weights_hash(model), options, dataset.fingerprint, shard_size
    )
    count = -(-len(dataset) // shard_size)
    depth = len(model.blocks)
    summary = ExportSummary()
    purpose = hashlib.sha256(canonical(who).encode()).hexdigest() if workers > 1 else ""
    with folder_lock(out, purpose) as lock:
        done_shards(out, "cams", who, resume=resume, overwrite=overwrite)
        for index in sorted(range(count), key=lambda n: (n % workers != rank, n)):
            items = dataset.items[index * shard_size : (index + 1) * shard_size]
            if not lock.claim(index):
                continue
            finished = done_shard(out, "cams", index, count)
            if finished and not _now_readable(dataset, finished):
                summary.add(finished, written=False)
                progress(len(items))
            else:
                records, failed = _compute(
                    model, dataset, items, options, batch_size, decode_workers, progress
                )
                with telling_full_disk(out, summary):
                    finished = write_cam_shard(
                        out, index, count, records, failed=failed, identity=who,
                        epsilons={s: options.epsilon(s, depth) for s in options.stages},
                        config=_config(model, dataset, options, shard_size),
                        versions=versions("numpy", "h5py"),
                    )  # fmt: skip
                summary.add(finished, written=True)
            lock.release(index)
    summary.others_shards = count - summary.written_shards - summary.skipped_shards
    summary.bytes = stored_bytes(out, "cams")
    return summary


def require_classes(model: ClassTokenViT, dataset: Dataset) -> None:
    """Refuse a model whose classes are not those of the data set.

    Raises:
        WsssError: another number or order of classes.
    """
    theirs, ours = model.config.class_names, dataset.class_names
    if len(theirs) != len(ours) or (theirs != ours and not model.config.names_assumed):
        differ = next(
            (a, b) for a, b in zip((*theirs, "none"), (*ours, "none"), strict=False) if a != b
        )
        raise WsssError(
            f"Expected a checkpoint of the data set's {len(ours)} classes, found one of "
            f"{len(theirs)} (the first that differs: {differ[0]!r} against {differ[1]!r}).",
            "Give the checkpoint that was trained for this data set.",
        )


def _now_readable(dataset: Dataset, finished: Sidecar) -> bool:
    """Whether any image that could not be read for a shard decodes by now."""
    for image_id, reason in finished.failed.items():
        try:
            if image_id in dataset.by_id and not reason.startswith(_NO_CAM):
                dataset.load_image(dataset.by_id[image_id])
                return True
        except BadFile:
            continue
    return False


def _compute(
    model: ClassTokenViT,
    dataset: Dataset,
    items: tuple[Item, ...],
    options: CamOptions,
    batch_size: int,
    decode_workers: int,
    progress: Callable[[int], None],
) -> tuple[list[CamRecord], dict[str, str]]:
    """The records of one shard, sorted by id, and what failed."""
    records: list[CamRecord] = []
    failed: dict[str, str] = {}
    for batch in load_batches(dataset, items, batch_size, decode_workers):
        if batch.error:
            failed[batch.items[0].id] = batch.error
        else:
            for part in batch.parts(most_images(model, batch.images[0].size, options)):
                done, bad = _compute_batch(model, part.items, part.images, options)
                records += done
                failed |= bad
        progress(len(batch.items))
    records.sort(key=lambda record: record.id)
    return records, failed


def _compute_batch(
    model: ClassTokenViT,
    items: tuple[Item, ...],
    images: tuple[Image.Image, ...],
    options: CamOptions,
) -> tuple[list[CamRecord], dict[str, str]]:
    """Records of images of one size, and what failed."""
    try:
        grids = stage_grids(model, images, [item.labels for item in items], options)
    except BadFile as error:
        return [], {item.id: f"{_NO_CAM}{error}" for item in items}
    records: list[CamRecord] = []
    failed: dict[str, str] = {}
    for item, image, stages in zip(items, images, grids, strict=True):
        try:
            records.append(CamRecord(item.id, (image.height, image.width), item.labels, stages))
        except BadFile as error:
            failed[item.id] = f"{_NO_CAM}{error}"
    return records, failed


def _config(
    model: ClassTokenViT, dataset: Dataset, options: CamOptions, shard_size: int
) -> dict[str, Any]:
    """Resolved options, as stored beside the numbers."""
    return {
        "dataset": dataset.name,
        "split": dataset.split,
        "labels": f"image-level labels of the data set ({dataset.label_source})",
        "shard_size": shard_size,
        "kernels": for_device(next(model.parameters()).device),
        **options.to_json(),
    }
