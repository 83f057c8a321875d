"""`export-cams`: run a classifier over a data set and leave CAM shards, resumably."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import asdict
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
from wsssfast.pace import Pace, Watch
from wsssfast.pipeline import NO_CAM, ShardWork, compute_shards
from wsssfast.shards.format import (
    DEFAULT_SHARD_SIZE,
    MOST_SHARDS,
    Sidecar,
    canonical,
    stored_bytes,
)
from wsssfast.shards.lock import folder_lock
from wsssfast.shards.resume import (
    ExportSummary,
    done_shard,
    done_shards,
    telling_full_disk,
)
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
    resume: bool = True,
    overwrite: bool = False,
    worker: tuple[int, int] = (0, 1),
    watch: Watch = lambda event, facts: None,
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
        batch_size: most images of equal size in one forward pass; by size and device where None.
        decode_workers: decoding threads.
        resume: whether a folder that holds shards of this configuration is continued.
        overwrite: discard the shards in `out` first; not with several workers.
        worker: (i, n), this is the i-th of n that share the folder, from 0.
        watch: told of what happens, as `Pace` tells: "begin", "images", "shard" and "end".

    Raises:
        WsssError: `out` holds another configuration, another run is writing there, the classes
            differ, or the disk is full.
    """
    require_classes(model, dataset)
    require_stages(model, options.stages)
    if min(shard_size, 1 if batch_size is None else batch_size, decode_workers) < 1:
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
    if count > MOST_SHARDS:
        raise WsssError(
            f"Expected at most {MOST_SHARDS} shards, found {count}.", "Give a larger --shard-size."
        )
    depth = len(model.blocks)
    config = _config(model, dataset, options, shard_size)
    packages = versions("numpy", "h5py")
    summary, counting = ExportSummary(), threading.Lock()
    purpose = hashlib.sha256(canonical(who).encode()).hexdigest() if workers > 1 else ""
    with folder_lock(out, purpose) as lock:
        done = done_shards(out, "cams", who, resume=resume, overwrite=overwrite, alone=workers == 1)
        before = sum(len(sidecar.ids) + len(sidecar.failed) for sidecar in done.values())
        pace = Pace(len(dataset), before, workers, watch)

        def to_do() -> Iterator[tuple[int, tuple[Item, ...]]]:
            for index in sorted(range(count), key=lambda n: (n % workers != rank, n)):
                if not lock.claim(index):
                    continue
                items = dataset.items[index * shard_size : (index + 1) * shard_size]
                finished = done_shard(out, "cams", index, count)
                if finished and not _now_usable(model, dataset, options, finished):
                    with counting:
                        summary.add(finished, written=False)
                    pace.advance(len(items), len(finished.failed), before=True)
                    lock.release(index)
                else:
                    yield index, items

        def write(work: ShardWork) -> None:
            with telling_full_disk(out, summary):
                finished = write_cam_shard(
                    out, work.index, count, work.records, failed=work.failed, identity=who,
                    epsilons={s: options.epsilon(s, depth) for s in options.stages},
                    config=config, versions=packages,
                )  # fmt: skip
            lock.release(work.index)
            with counting:
                summary.add(finished, written=True)
            pace.tell("shard", index=work.index, unusable=work.failed)

        pace.tell(
            "begin", worker=f"{rank}/{workers}", shards=count, batch_size=batch_size or "auto",
            decode_workers=decode_workers, device=str(next(model.parameters()).device),
            config=config, versions=packages,
        )  # fmt: skip
        compute_shards(
            model, dataset, to_do(), options, write,
            batch_size=batch_size, decode_workers=decode_workers, pace=pace,
        )  # fmt: skip
    summary.others_shards = count - summary.written_shards - summary.skipped_shards
    summary.bytes = stored_bytes(out, "cams")
    shards = {k: v for k, v in asdict(summary).items() if k not in ("images", "failed")}
    pace.tell("end", **shards)
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


def _now_usable(
    model: ClassTokenViT, dataset: Dataset, options: CamOptions, finished: Sidecar
) -> bool:
    """Whether any image that could not be used for a shard can be by now."""
    for image_id, reason in finished.failed.items():
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


def _config(
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
