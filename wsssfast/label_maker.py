"""Masks of many images from their stored maps: here, or in worker processes."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess

import numpy as np
import torch
from numpy.typing import NDArray

from wsssfast.data.dataset import Dataset
from wsssfast.errors import WORKER_FAILED, BadFile, WsssError
from wsssfast.kernels import CrfBackend, choose_crf, full_size_cam
from wsssfast.label_options import LabelOptions
from wsssfast.memory import ran_out, usable_memory
from wsssfast.pseudo_labels import pseudo_labels
from wsssfast.shards.label_shards import LabelRecord
from wsssfast.shards.writer import Grid

_BATCH_PIXELS = 1 << 22  # of images that a GPU refines together
_BYTES = 400  # a pixel, that a CRF takes beside its scores


@dataclass(frozen=True)
class Maps:
    """The stored maps of one image.

    Attributes:
        id: of the image.
        image_size: (height, width) in pixels.
        labels: the classes of the maps, sorted, 0-based.
        grids: per scale float32 [K, h, w].
        epsilon: of the min-max.
    """

    id: str
    image_size: tuple[int, int]
    labels: tuple[int, ...]
    grids: list[Grid]
    epsilon: float


Made = LabelRecord | str  # or the reason why there is none
MakeAll = Callable[[Iterable[Maps]], Iterator[tuple[str, Made]]]


@dataclass(frozen=True)
class LabelMaker:
    """Makes label records; can be sent to another process.

    Attributes:
        options: how.
        dataset: where a CRF finds the images; None where nothing looks at them.
        device: where maps are brought to full size and refined.
        backend: of the CRF.
        share: how many such makers the machine's memory is for.
    """

    options: LabelOptions
    dataset: Dataset | None = None
    device: str = "cpu"
    backend: CrfBackend = "auto"
    share: int = 1

    def __call__(self, batch: Sequence[Maps]) -> list[Made]:
        """A record of each, or the reason why there is none; one after the other where not all."""
        try:
            return self._together(batch)
        except BadFile as error:
            if len(batch) == 1:
                return [str(error)]
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            if len(batch) == 1:
                height, width = batch[0].image_size
                return [f"not enough memory for {width}x{height} pixels"]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return [made for one in batch for made in self([one])]

    def batches(self, maps: Iterable[Maps]) -> Iterator[tuple[Maps, ...]]:
        """What is computed together: single images, or as many as fill a GPU."""
        most = 1 if self.device == "cpu" else _BATCH_PIXELS
        batch: list[Maps] = []
        pixels = 0
        for one in maps:
            area = one.image_size[0] * one.image_size[1]
            if batch and pixels + area > most:
                yield tuple(batch)
                batch, pixels = [], 0
            batch.append(one)
            pixels += area
        if batch:
            yield tuple(batch)

    def _together(self, batch: Sequence[Maps]) -> list[Made]:
        images = [self.image(one) for one in batch]
        cams = [
            full_size_cam(
                [torch.from_numpy(grid).to(self.device) for grid in one.grids], one.image_size,
                one.epsilon,
            )
            if one.labels else torch.zeros(0, *one.image_size)
            for one in batch
        ]  # fmt: skip
        masks = pseudo_labels(
            cams, [one.labels for one in batch], images, self.options, backend=self.backend
        )
        return [
            LabelRecord.of(one.id, one.labels, mask) for one, mask in zip(batch, masks, strict=True)
        ]

    def image(self, maps: Maps) -> NDArray[np.uint8] | None:
        """The image as RGB [H, W, 3]; None where nothing looks at it.

        Raises:
            BadFile: it cannot be read, has another size than its maps, or needs too much memory.
        """
        if self.dataset is None or not maps.labels:
            return None
        height, width = maps.image_size
        columns = (2 * len(maps.labels) + 3) * self.options.settings
        needed = height * width * (_BYTES + 8 * columns)
        if needed > usable_memory(torch.device(self.device)) // 2 // self.share:
            raise BadFile(f"{width}x{height} pixels need more than half of the memory for a CRF")
        image = np.asarray(self.dataset.load_image(self.dataset.by_id[maps.id]))
        if image.shape[:2] != maps.image_size:
            raise BadFile(
                f"it has {image.shape[1]}x{image.shape[0]} pixels now, its CAM was made of "
                f"{width}x{height}"
            )
        return image


def label_maker(
    options: LabelOptions,
    dataset: Dataset | None,
    device: str,
    backend: CrfBackend,
    crf_workers: int,
) -> LabelMaker:
    """A maker for a number of processes; pydensecrf runs on the CPU whatever the device.

    Raises:
        WsssError: the backend cannot run there, or several processes would share a GPU.
    """
    place = "cpu" if backend == "pydensecrf" or options.refine == "none" else device
    if crf_workers < 1 or (crf_workers > 1 and place != "cpu"):
        raise WsssError(
            f"Expected one process that refines on a GPU, or several on the CPU, found "
            f"{crf_workers} on {place}.",
            "Leave --crf-workers out.",
        )
    if options.refine == "crf":
        try:
            choose_crf(backend, place)
        except ValueError as error:
            raise WsssError(
                f"The CRF cannot run: {error}.", "`wsssfast doctor` says what can."
            ) from error
    images = dataset if options.refine == "crf" else None
    return LabelMaker(options, images, place, backend, crf_workers)


@contextmanager
def label_makers(maker: LabelMaker, workers: int) -> Iterator[MakeAll]:
    """What turns maps into records, in their order; in so many processes where more than one.

    Raises:
        WsssError: a process died; exit code 5.
    """
    if workers == 1:

        def here(maps: Iterable[Maps]) -> Iterator[tuple[str, Made]]:
            for batch in maker.batches(maps):
                yield from zip((one.id for one in batch), maker(batch), strict=True)

        yield here
        return
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _begin_worker, (maker,)
    ) as pool:
        try:
            yield lambda maps: _spread(pool, maps, 3 * workers)
        except BrokenProcessPool as error:
            raise WsssError(
                "Expected the processes that refine labels to live, found one killed.",
                "It may have been for memory: give fewer --crf-workers. What is written stays; run "
                "the same command again.",
                WORKER_FAILED,
            ) from error
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _spread(
    pool: ProcessPoolExecutor, maps: Iterable[Maps], ahead: int
) -> Iterator[tuple[str, Made]]:
    pending: deque[tuple[str, Future[Made]]] = deque()
    for one in maps:
        if len(pending) == ahead:
            image_id, made = pending.popleft()
            yield image_id, made.result()
        pending.append((one.id, pool.submit(_make, one)))
    for image_id, made in pending:
        yield image_id, made.result()


_own: LabelMaker  # of a worker process


def _begin_worker(maker: LabelMaker) -> None:
    """One core each; the parent alone is interrupted, and none outlives it."""
    global _own
    _own = maker
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _make(maps: Maps) -> Made:
    return _own([maps])[0]
