"""`predict`: masks of images from a trained segmenter into label shards, resumably (method §7)."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wsssfast.data.dataset import Dataset, Item
from wsssfast.errors import BadFile, WsssError
from wsssfast.export import require_classes, shards_of
from wsssfast.kernels import CrfBackend, Pairwise
from wsssfast.labels.makers import (
    Made,
    crf_at,
    made_of,
    makers,
    records_of,
    sharing,
    write_records,
)
from wsssfast.labels.rules import energies, refined
from wsssfast.memory import CRF_BYTES, usable_memory
from wsssfast.models.checkpoint import load_again, load_segmenter, weights_hash
from wsssfast.precision import Precision, autocast
from wsssfast.segment import SegmentOptions, probabilities
from wsssfast.shards.format import DEFAULT_SHARD_SIZE, FORMAT_VERSION, Sidecar
from wsssfast.shards.label_shards import LabelRecord
from wsssfast.shards.resume import ExportSummary
from wsssfast.shards.run import ALONE, Filling, shard_run
from wsssfast.torchrun import own_cores
from wsssfast.versions import versions

_AHEAD = 4  # images that are decoded side by side for a GPU
_COPIES = 6  # of an image's probabilities that exist at a time
_NOT_FINITE = "its probabilities are not finite"


@dataclass(frozen=True)
class PredictOptions:
    """How masks are predicted; every field changes the numbers.

    Attributes:
        segment: scales, mirror images and windows.
        crf: constants of the dense CRF that refines the probabilities; None: there is none.
        precision: of the network: fp32, bf16 or fp16 (autocast).
    """

    segment: SegmentOptions
    crf: Pairwise | None = None
    precision: Precision = "fp32"

    def to_json(self) -> dict[str, Any]:
        """Every field that takes part, as plain JSON types."""
        told = {**self.segment.to_json(), "precision": self.precision}
        if self.crf:
            told |= {f"crf_{key}": value for key, value in asdict(self.crf).items()}
        return told


@dataclass(frozen=True)
class MaskMaker:
    """Segments images; can be sent to another process.

    Attributes:
        network: checkpoint of the segmenter.
        weights: their hash.
        dataset: where the images are.
        options: how.
        device: where network and CRF run.
        backend: of the CRF.
        share: how many such makers the machine's memory is for.
        pixel_bytes: memory that the network takes for a pixel that it sees.
        workers_option: that sets the number of processes.
    """

    network: Path
    weights: str
    dataset: Dataset
    options: PredictOptions
    device: str = "cpu"
    backend: CrfBackend = "auto"
    share: int = 1
    pixel_bytes: int = 4000
    workers_option: str = "--workers"

    def __call__(self, batch: Sequence[Item]) -> list[Made]:
        """A record of each image, or the reason why there is none."""
        return made_of(self._together, batch, self._size)

    def batches(self, items: Iterable[Item]) -> Iterator[tuple[Item, ...]]:
        """Single images; on a GPU a few, which are decoded side by side."""
        most = 1 if self.device == "cpu" else _AHEAD
        batch: list[Item] = []
        for item in items:
            batch.append(item)
            if len(batch) == most:
                yield tuple(batch)
                batch = []
        if batch:
            yield tuple(batch)

    def _together(self, batch: Sequence[Item]) -> list[Made]:
        if len(batch) == 1:
            return [self._record(batch[0], self.image(batch[0]))]
        with ThreadPoolExecutor(min(len(batch), own_cores()), "decode") as pool:
            images = list(pool.map(self.image, batch))
        return [self._record(item, image) for item, image in zip(batch, images, strict=True)]

    def image(self, item: Item) -> NDArray[np.uint8]:
        """The image as RGB [H, W, 3].

        Raises:
            BadFile: it cannot be read, or needs too much memory.
        """
        height, width = self._size(item)
        if not self._fits(height * width):
            raise BadFile(
                f"{width}x{height} pixels need more than half of the memory; smaller --scales, "
                "--tile and fewer --workers take less"
            )
        return np.array(self.dataset.load_image(item))

    def _record(self, item: Item, image: NDArray[np.uint8]) -> LabelRecord:
        model = load_again(load_segmenter, self.network, self.weights, self.device)
        pixels = torch.from_numpy(image).to(self.device)
        with autocast(self.device, self.options.precision):
            scores = probabilities(model, pixels, self.options.segment)
        if not scores.isfinite().all():
            raise BadFile(_NOT_FINITE)
        if self.options.crf:
            place = _crf_device(self.backend, self.device)
            (scores,) = refined(
                [pixels.to(place)], [energies(scores).to(place)], self.options.crf, self.backend
            )
        mask = scores.argmax(0).to(torch.uint8).cpu().numpy()
        return LabelRecord.of(item.id, (np.unique(mask[mask > 0]) - 1).tolist(), mask)

    def _size(self, item: Item) -> tuple[int, int]:
        width, height = self.dataset.image_size(item)
        return height, width

    def _fits(self, pixels: int) -> bool:
        """Whether network, probabilities and CRF take less than half of this maker's memory."""
        scores, segment = len(self.dataset.class_names) + 1, self.options.segment
        seen = pixels * max(1.0, *(scale**2 for scale in segment.scales))
        at_once = min(seen, segment.tile**2) if segment.tile else seen
        needed = 4 * scores * (_COPIES * pixels + seen) + at_once * self.pixel_bytes
        if self.options.crf:
            needed += pixels * CRF_BYTES
        return needed <= usable_memory(torch.device(self.device)) // 2 // self.share


def predict(
    checkpoint: Path,
    dataset: Dataset,
    out: Path,
    options: PredictOptions,
    *,
    device: str = "cpu",
    backend: CrfBackend = "auto",
    workers: int = 1,
    shard_size: int = DEFAULT_SHARD_SIZE,
    filling: Filling = ALONE,
) -> ExportSummary:
    """Segment every image of a data set; labels of its items are not looked at.

    Args:
        checkpoint: of the segmenter.
        dataset: images.
        out: folder of the label shards; made where absent.
        options: how.
        device: where network and CRF run.
        backend: of the CRF.
        workers: processes of one thread each, on a CPU.
        shard_size: images a shard.
        filling: how the folder is continued, shared with other workers and watched.

    Raises:
        WsssError: another kind of checkpoint or other classes, `out` holds another configuration,
            a CRF that cannot run, the disk is full, or a process died.
    """
    if workers < 1 or (workers > 1 and device != "cpu"):
        raise WsssError(
            f"Expected one process on a GPU, or one or more on the CPU, found {workers}.",
            "Leave --workers out.",
        )
    chosen = crf_at(backend, _crf_device(backend, device)) if options.crf else None
    model = load_segmenter(checkpoint)
    require_classes(model, dataset)
    weights = weights_hash(model)
    pixel_bytes = model.net.pixel_bytes
    del model
    who = {
        "format_version": FORMAT_VERSION,
        "class_names": list(dataset.class_names),
        "predicted": options.to_json(),
        "weights": weights,
        "dataset": dataset.unlabelled().fingerprint,
        "shard_size": shard_size,
    }
    config: dict[str, object] = {
        "dataset": dataset.name, "split": dataset.split, "device": device, **options.to_json(),
        **({"crf_backend": chosen} if chosen else {}),
    }  # fmt: skip
    shards = shards_of(dataset, shard_size)
    maker = MaskMaker(
        checkpoint,
        weights,
        dataset,
        options,
        device,
        backend,
        sharing(device, workers),
        pixel_bytes,
    )
    begin = {"workers": workers, "config": config, "versions": versions("numpy", "h5py")}
    with (
        shard_run(
            out, "labels", who, {n: len(items) for n, items in enumerate(shards)}, len(shards),
            filling=filling, begin=begin,
        ) as run,
        makers(maker, workers, Event()) as make,
    ):  # fmt: skip

        def current(index: int, finished: Sidecar) -> bool:
            tried = [i for i, reason in finished.failed.items() if reason != _NOT_FINITE]
            return not any(_usable(maker, dataset, i) for i in tried)

        for index in run.to_do(current):
            records, failed = records_of(make, shards[index], run)
            write_records(run, out, index, len(shards), records, failed, who, config)
    return run.summary


def _crf_device(backend: CrfBackend, device: str) -> str:
    """Pydensecrf runs on the CPU wherever the network does."""
    return "cpu" if backend == "pydensecrf" else device


def _usable(maker: MaskMaker, dataset: Dataset, image_id: str) -> bool:
    """Whether an image that could not be segmented can be by now."""
    try:
        maker.image(dataset.by_id[image_id])
    except BadFile:
        return False
    return True
