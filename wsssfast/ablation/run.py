"""`ablate`: the counts of many settings into score shards, resumably."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from wsssfast.ablation.maps import setting_maps
from wsssfast.ablation.settings import Setting
from wsssfast.cam_options import CamOptions
from wsssfast.compute import require_stages
from wsssfast.data.dataset import Dataset
from wsssfast.errors import BadFile, WsssError
from wsssfast.evaluate import THRESHOLDS, CamScorer, Truth
from wsssfast.export import now_usable, require_classes, require_positive, shards_of
from wsssfast.models.checkpoint import weights_hash
from wsssfast.models.classifier import ClassTokenViT
from wsssfast.pipeline import ShardWork, compute_shards
from wsssfast.shards.format import DEFAULT_SHARD_SIZE, FORMAT_VERSION, Sidecar
from wsssfast.shards.reader import full_size
from wsssfast.shards.resume import ExportSummary
from wsssfast.shards.run import ALONE, Filling, shard_run
from wsssfast.shards.score_shards import ScoredImage, write_score_shard
from wsssfast.shards.writer import CamRecord
from wsssfast.torchrun import own_cores
from wsssfast.versions import versions

_TOGETHER = 16  # images whose truth is held while all settings are counted
_MASK = "mask: "  # begins the reason of an image whose mask could not be used


def ablate(
    model: ClassTokenViT,
    dataset: Dataset,
    out: Path,
    settings: Sequence[Setting],
    base: CamOptions,
    *,
    shard_size: int = DEFAULT_SHARD_SIZE,
    batch_size: int | None = None,
    decode_workers: int = 2,
    filling: Filling = ALONE,
) -> ExportSummary:
    """Count every setting against a data set's masks; no maps are stored on the way.

    Args:
        model: in evaluation mode, on the device to use.
        dataset: with masks; its image-level labels choose the classes. Images without a mask are
            left out.
        out: folder of the score shards; made where absent.
        settings: what to score.
        base: flip, precision and whatever a setting leaves open.
        shard_size: images a shard.
        batch_size: most images of equal size in one forward pass; by size and device where None.
        decode_workers: decoding threads.
        filling: how the folder is continued, shared with other workers and watched.

    Raises:
        WsssError: a stage that this model has not, other classes, `out` holds another
            configuration, another run is writing there, or the disk is full.
    """
    require_classes(model, dataset)
    require_stages(model, sorted({setting.stage for setting in settings}))
    require_positive(batch_size, decode_workers)
    depth = len(model.blocks)
    epsilons = [s.options(base).epsilon(s.stage, depth) for s in settings]
    wide = replace(
        base,
        scales=tuple(sorted({scale for setting in settings for scale in setting.scales})),
        predict_above=None,
    )
    open_fields = ("flip", "precision", "include_self", "fuse")
    who = {
        "format_version": FORMAT_VERSION,
        "class_names": list(dataset.class_names),
        "settings": [setting.to_json() for setting in settings],
        "thresholds": list(THRESHOLDS),
        **{key: getattr(base, key) for key in open_fields},
        "weights": weights_hash(model),
        "dataset": dataset.fingerprint,
        "shard_size": shard_size,
    }
    config = {
        "dataset": dataset.name,
        "split": dataset.split,
        "labels": f"image-level labels of the data set ({dataset.label_source})",
    }
    packages = versions("numpy", "h5py")
    about = {
        "batch_size": batch_size or "auto", "decode_workers": decode_workers,
        "device": str(next(model.parameters()).device), "settings": len(settings),
        "config": config, "versions": packages,
    }  # fmt: skip
    shards = shards_of(dataset, shard_size)
    with (
        shard_run(
            out, "scores", who, {n: len(items) for n, items in enumerate(shards)}, len(shards),
            filling=filling, begin=about,
        ) as run,
        ThreadPoolExecutor(own_cores(), "score", torch.set_num_threads, (1,)) as pool,
    ):  # fmt: skip

        def current(index: int, finished: Sidecar) -> bool:
            of_masks = {i for i, why in finished.failed.items() if why.startswith(_MASK)}
            of_images = {i: w for i, w in finished.failed.items() if i not in of_masks}
            mended = any(not isinstance(_truth(dataset, i), str) for i in of_masks)
            return not mended and not now_usable(model, dataset, wide, of_images)

        def write(work: ShardWork) -> None:
            scorers = [CamScorer(dataset.class_names) for _ in settings]
            scored: list[ScoredImage] = []
            failed = dict(work.failed)
            for begin in range(0, len(work.records), _TOGETHER):
                records = work.records[begin : begin + _TOGETHER]
                found = [(record, _truth(dataset, record.id)) for record in records]
                images = [(r, truth) for r, truth in found if isinstance(truth, Truth)]
                failed |= {r.id: reason for r, reason in found if isinstance(reason, str)}
                jobs = [(str(n), *job) for n, job in enumerate(zip(scorers, epsilons, strict=True))]
                list(pool.map(partial(_count, images), jobs))
                scored += [ScoredImage(r.id, r.image_size, r.labels) for r, _ in images]
            run.write(work.index, lambda: write_score_shard(
                out, work.index, len(shards), scored, scorers[0].truth,
                np.stack([scorer.seen for scorer in scorers]),
                failed=failed, identity=who, config=config, versions=packages,
            ))  # fmt: skip

        compute_shards(
            model, dataset, ((n, shards[n]) for n in run.to_do(current)), wide, write,
            batch_size=batch_size, decode_workers=decode_workers, pace=run.pace,
            compute=lambda pixels, labels: setting_maps(model, pixels, labels, settings, wide),
        )  # fmt: skip
    return run.summary


def _truth(dataset: Dataset, image_id: str) -> Truth | str | None:
    """What the mask of an image says, why it cannot be used, or None where there is none."""
    item = dataset.by_id[image_id]
    try:
        mask = dataset.load_mask(item)
        if mask is None:
            return None
        width, height = dataset.image_size(item)
    except BadFile as error:
        return f"{_MASK}{error}"
    if mask.shape != (height, width):
        return (
            f"{_MASK}expected the image's size {width}x{height}, found "
            f"{mask.shape[1]}x{mask.shape[0]}"
        )
    try:
        return Truth.of(mask, np.array(item.labels, np.int64), len(dataset.class_names))
    except WsssError as error:
        return f"{_MASK}{error}"


def _count(images: Sequence[tuple[CamRecord, Truth]], job: tuple[str, CamScorer, float]) -> None:
    """Count some images for one setting: no two threads add to the same counts."""
    name, scorer, epsilon = job
    for record, truth in images:
        scorer.add_truth(truth, full_size(record.grids[name], record.image_size, epsilon))
