"""CAM shards to the dumps that the field's scripts read, and back."""

import hashlib
import io
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from wsssfast.data.dataset import IGNORE, require_safe_ids
from wsssfast.data.safe_pickle import read_npy
from wsssfast.errors import BadFile, WsssError, listing
from wsssfast.files import telling_no_room, write_each
from wsssfast.shards.lock import folder_lock
from wsssfast.shards.reader import CamShards
from wsssfast.shards.resume import done_shards
from wsssfast.shards.writer import CamRecord, write_cam_shard

IMPORTED_SHARD_SIZE = 64  # full-size maps are in memory until their shard is written
_STRIDE = 4  # of IRN's small maps
Map = NDArray[np.float32]


def to_npy(shards: CamShards, out: Path, stage: str | None, progress: Callable[[int], None]) -> int:
    """`<id>.npy` as MCTformer and PSA read it: a pickled dict {0-based class: float32 H x W}.

    The maps are those of `shards.cam`, bit for bit, in [0, 1]; the classes those of the image,
    sorted; an image without any gives an empty dict. Each file appears whole or not at all and
    replaces what was there.

    Args:
        shards: what to convert.
        out: folder of the files.
        stage: one of `shards.stages`; the last stored where None.
        progress: called with 1 a file.

    Returns:
        How many files were written.

    Raises:
        WsssError: no such stage, a damaged shard, or `out` cannot be written to.
    """
    return _dump(shards, out, stage, progress, _as_dict)


def to_irn(shards: CamShards, out: Path, stage: str | None, progress: Callable[[int], None]) -> int:
    """`<id>.npy` as IRN reads it: a pickled dict of keys, cam (at a quarter size) and high_res.

    `keys` is a torch tensor int64 [K] of 0-based classes, `cam` one of float32
    [K, ceil(H/4), ceil(W/4)], and `high_res` a NumPy array float32 [K, H, W]; both in [0, 1].
    `high_res` is `shards.cam`, bit for bit; `cam` is that resized and divided by its own maximum
    + 1e-5, as IRN's `make_cam` does. Otherwise as `to_npy`.

    Returns:
        How many files were written.

    Raises:
        WsssError: no such stage, a damaged shard, or `out` cannot be written to.
    """
    return _dump(shards, out, stage, progress, _as_irn)


def from_npy(
    source: Path,
    out: Path,
    class_names: tuple[str, ...],
    progress: Callable[[int], None],
    shard_size: int = IMPORTED_SHARD_SIZE,
) -> dict[str, str]:
    """A folder of MCTformer's `.npy` CAM dumps into shards, one full-size map a class.

    The pickles are read without running them. The shards say `stage` final and hold each map as
    whole steps of its maximum / 65535: to half a step, 7.7e-6 of the maximum with float32's
    rounding. `cam` of such shards min-maxes again, which changes no map that goes from 0 to 1; of
    such maps the second round trip is exact, to the byte, in the dumps and in the shards. One whose
    maximum m is below 1 (by the epsilon of the min-max that made it) is off by 1 - m more.

    Args:
        source: folder of `<id>.npy`, each {0-based class: float H x W in [0, 1]}.
        out: folder of the shards.
        class_names: the C classes.
        progress: called with 1 a file.
        shard_size: images a shard.

    Returns:
        id -> reason of files that could not be used.

    Raises:
        WsssError: no such files, ones of IRN, `out` holds other shards, or it cannot be written to.
    """
    paths = sorted(source.glob("*.npy")) if source.is_dir() else []
    if not paths:
        raise WsssError(f"Expected a folder of .npy CAM dumps at {source}, found none.")
    _refuse_irn(paths[0])
    names = [path.stem for path in paths]
    require_safe_ids(names)
    if len(class_names) > IGNORE - 1:
        raise WsssError(f"Expected at most {IGNORE - 1} classes, found {len(class_names)}.")
    identity: dict[str, Any] = {
        "class_names": list(class_names),
        "stages": ["final"],
        "scales": [1.0],
        "imported": "npy",
        "dataset": hashlib.sha256("\n".join(names).encode()).hexdigest(),
        "shard_size": shard_size,
        "propagation": "unknown",
    }
    all_failed: dict[str, str] = {}
    with folder_lock(out):
        done_shards(out, "cams", identity)  # nothing is skipped: the files may have changed
        count = -(-len(paths) // shard_size)
        for index in range(count):
            records, failed = [], {}
            for path in paths[index * shard_size : (index + 1) * shard_size]:
                try:
                    records.append(_record(path, len(class_names)))
                except (WsssError, BadFile) as error:
                    failed[path.stem] = (
                        error.message if isinstance(error, WsssError) else str(error)
                    )
                progress(1)
            with telling_no_room(out):
                write_cam_shard(
                    out, index, count, records, failed=failed, identity=identity,
                    epsilons={"final": 1e-8}, config={"source": "npy"},
                    versions={"wsssfast": version("wsssfast")},
                )  # fmt: skip
            all_failed.update(failed)
    return all_failed


def _dump(
    shards: CamShards,
    out: Path,
    stage: str | None,
    progress: Callable[[int], None],
    layout: Callable[[NDArray[np.int64], Map], dict[Any, Any]],
) -> int:
    if stage is not None:
        shards.require_stage(stage)

    def content(image_id: str) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, layout(*shards.cam(image_id, stage)))  # type: ignore[arg-type]
        return buffer.getvalue()

    return write_each(out, shards, ".npy", content, progress)


def _as_dict(labels: NDArray[np.int64], maps: Map) -> dict[int, Map]:
    return {int(label): maps[k] for k, label in enumerate(labels)}


def _as_irn(labels: NDArray[np.int64], maps: Map) -> dict[str, Any]:
    height, width = maps.shape[1:]
    size = ((height - 1) // _STRIDE + 1, (width - 1) // _STRIDE + 1)
    small = torch.zeros((0, *size))
    if len(labels):
        small = F.interpolate(
            torch.from_numpy(maps)[None], size, mode="bilinear", align_corners=False
        )[0]
        small = small / (small.amax((1, 2), keepdim=True) + 1e-5)
    # make_cam's own types: IRN's make_sem_seg_labels calls cam.cuda()
    return {"keys": torch.from_numpy(labels), "cam": small, "high_res": maps}


def _refuse_irn(path: Path) -> None:
    """Tell IRN's dumps by the first of them: pickled tensors are code, which nothing here runs."""
    try:
        content = path.read_bytes()
    except OSError:
        return  # it is listed with the files that could not be used
    if b"high_res" in content:
        raise WsssError(
            f"Expected dicts {{class: map}} as PSA and MCTformer write them, found one of IRN in "
            f"{path}.",
            "Its tensors are pickled code, which is not run; docs/convert.md shows how to save "
            "{key: high_res} of each instead.",
        )


def _record(path: Path, num_classes: int) -> CamRecord:
    found = read_npy(path)
    if not isinstance(found, dict):
        raise BadFile("it holds no {class: map} dict")
    maps: dict[int, Map] = {}
    for key, value in found.items():
        if not isinstance(key, (int, np.integer)) or not 0 <= key < num_classes:
            raise BadFile(f"it has the class {str(key)[:40]!r}, expected 0..{num_classes - 1}")
        if not isinstance(value, np.ndarray) or value.ndim != 2 or value.dtype.kind != "f":
            raise BadFile(f"its map of class {key} is not a 2-D array of floats")
        maps[int(key)] = value.astype(np.float32)
    if not maps:
        raise BadFile("it holds no map, so that the size of its image is unknown")
    sizes = sorted({value.shape for value in maps.values()})
    if len(sizes) != 1 or 0 in sizes[0]:
        raise BadFile(f"it has maps of the sizes {listing([str(s) for s in sizes])}")
    labels = tuple(sorted(maps))
    grid = np.stack([maps[c] for c in labels])
    return CamRecord(path.stem, (grid.shape[1], grid.shape[2]), labels, {"final": [grid]})
