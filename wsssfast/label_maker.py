"""Masks of many images from their stored maps: here, or in worker processes."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Event, Thread

import numpy as np
import torch
from numpy.typing import NDArray

from wsssfast.data.dataset import Dataset
from wsssfast.errors import WORKER_FAILED, BadFile, WsssError
from wsssfast.kernels import CrfBackend, choose_crf, full_size_cam
from wsssfast.label_options import VIT, LabelOptions
from wsssfast.label_walk import LARGEST, Affinity, network, seen_by
from wsssfast.memory import ran_out, usable_memory
from wsssfast.pseudo_labels import pseudo_labels
from wsssfast.shards.label_shards import LabelRecord
from wsssfast.shards.writer import Grid
from wsssfast.torchrun import local_workers, own_cores

_BATCH_PIXELS = 1 << 22  # of images that a GPU refines together
_BYTES = 400  # a pixel, that a CRF takes beside its scores
_NETWORK_BYTES = 4000  # a pixel, that an AffinityNet takes
_TOO_LARGE = "pixels need more than half of the memory to be refined"


@dataclass(frozen=True)
class Maps:
    """The stored maps of one image.

    Attributes:
        id: of the image.
        image_size: (height, width) in pixels.
        labels: the classes of the maps, sorted, 0-based.
        grids: per scale float32 [K, h, w].
        epsilon: of the min-max.
        affinity: float32 [34, h, w] of the classifier's patches, where scores walk over it.
    """

    id: str
    image_size: tuple[int, int]
    labels: tuple[int, ...]
    grids: list[Grid]
    epsilon: float
    affinity: Grid | None = None


Made = LabelRecord | str  # or the reason why there is none
MakeAll = Callable[[Iterable[Maps]], Iterator[tuple[str, Made]]]


@dataclass(frozen=True)
class LabelMaker:
    """Makes label records; can be sent to another process.

    Attributes:
        options: how.
        dataset: where the images are; None where nothing looks at them.
        device: where maps are brought to full size and refined.
        backend: of the CRF.
        network: file of the AffinityNet, where scores walk over its affinities.
        share: how many such makers the machine's memory is for.
    """

    options: LabelOptions
    dataset: Dataset | None = None
    device: str = "cpu"
    backend: CrfBackend = "auto"
    network: Path | None = None
    share: int = 1

    def __call__(self, batch: Sequence[Maps]) -> list[Made]:
        """A record of each, or the reason why there is none; one after the other where not all."""
        try:
            return self._together(batch)
        except BadFile as error:
            if len(batch) == 1:
                return [str(error)]
        except ValueError as error:  # constants that the lattice cannot hold
            if len(batch) == 1:
                raise WsssError(f"The CRF cannot run: {error}.") from error
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
        if len(batch) > 1:
            with ThreadPoolExecutor(min(len(batch), own_cores()), "decode") as pool:
                images = list(pool.map(self.image, batch))
        else:
            images = [self.image(batch[0])]
        cams = [
            full_size_cam(
                [torch.from_numpy(grid).to(self.device) for grid in one.grids], one.image_size,
                one.epsilon,
            )
            if one.labels else torch.zeros(0, *one.image_size)
            for one in batch
        ]  # fmt: skip
        affinities = [self._affinity(one, image) for one, image in zip(batch, images, strict=True)]
        masks = pseudo_labels(
            cams, [one.labels for one in batch], images, self.options, affinities,
            backend=self.backend,
        )  # fmt: skip
        return [
            LabelRecord.of(one.id, one.labels, mask) for one, mask in zip(batch, masks, strict=True)
        ]

    def _affinity(self, maps: Maps, image: NDArray[np.uint8] | None) -> Affinity | None:
        """What scores walk over; None where they do not, or nothing walks."""
        walk = self.options.walk
        if walk is None or not maps.labels:
            return None
        if maps.affinity is not None:
            return Affinity(torch.from_numpy(maps.affinity).to(self.device))
        assert self.network and image is not None
        net = network(self.network, walk.by, self.device)
        return seen_by(net, torch.from_numpy(np.array(image)).to(self.device))

    def image(self, maps: Maps) -> NDArray[np.uint8] | None:
        """The image as RGB [H, W, 3]; None where nothing looks at it.

        Raises:
            BadFile: it cannot be read, has another size than its maps, or needs too much memory.
        """
        if self.dataset is None or not maps.labels:
            return None
        height, width = maps.image_size
        if not self.fits(maps.image_size, len(maps.labels)):
            raise BadFile(f"{width}x{height} {_TOO_LARGE}")
        image = np.asarray(self.dataset.load_image(self.dataset.by_id[maps.id]))
        if image.shape[:2] != maps.image_size:
            raise BadFile(
                f"it has {image.shape[1]}x{image.shape[0]} pixels now, its CAM was made of "
                f"{width}x{height}"
            )
        return image

    def fits(self, size: tuple[int, int], classes: int) -> bool:
        """Whether refining (height, width) pixels takes less than half of this maker's memory."""
        if self.dataset is None:
            return True
        columns = (2 * classes + 3) * self.options.settings
        pixels = size[0] * size[1]
        needed = pixels * (_BYTES + 8 * columns) if self.options.crfs else pixels * 8 * columns
        if self.network:
            needed = max(needed, min(pixels, LARGEST) * _NETWORK_BYTES)
        return needed <= usable_memory(torch.device(self.device)) // 2 // self.share

    def about(self) -> dict[str, str]:
        """What computes the CRF, for the record; nothing where none does."""
        if not self.options.crfs:
            return {}
        return {"crf_backend": choose_crf(self.backend, self.device)}


def label_maker(
    options: LabelOptions,
    dataset: Dataset | None,
    device: str,
    backend: CrfBackend,
    crf_workers: int,
    network: Path | None = None,
) -> LabelMaker:
    """A maker for a number of processes; pydensecrf runs on the CPU whatever the device.

    Raises:
        WsssError: the backend cannot run there, several processes would share a GPU, or there is no
            network for a walk that needs one.
    """
    place = "cpu" if backend == "pydensecrf" or options.refine == "none" else device
    if crf_workers < 1 or (crf_workers > 1 and place != "cpu"):
        raise WsssError(
            f"Expected one process that refines on a GPU, or one or more on the CPU, found "
            f"{crf_workers} on {place}.",
            "Leave --crf-workers out.",
        )
    if options.crfs:
        try:
            choose_crf(backend, place)
        except ValueError as error:
            raise WsssError(
                f"The CRF cannot run: {error}.", "`wsssfast doctor` says what can."
            ) from error
    if options.walk and (network is None) != (options.walk.by == VIT):
        raise WsssError("Expected an AffinityNet's checkpoint exactly where scores walk over it.")
    images = dataset if options.looks else None
    return LabelMaker(options, images, place, backend, network, crf_workers * local_workers())


@contextmanager
def label_makers(maker: LabelMaker, workers: int, stop: Event) -> Iterator[MakeAll]:
    """What turns maps into records, in their order; in so many processes where more than one.

    Args:
        maker: does it.
        workers: how many processes.
        stop: ends it early when it is set, from another thread.

    Raises:
        WsssError: a process died; exit code 5.
    """
    if workers == 1:

        def here(maps: Iterable[Maps]) -> Iterator[tuple[str, Made]]:
            for batch in maker.batches(maps):
                _go_on(stop)
                yield from zip((one.id for one in batch), maker(batch), strict=True)

        yield here
        return
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _begin_worker, (maker,)
    ) as pool:
        try:
            yield lambda maps: _spread(pool, maps, 3 * workers, stop)
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - others:
                process.kill()  # what they hold is nowhere else needed, and SIGTERM is blocked
            if not isinstance(error, BrokenProcessPool):
                raise
            raise WsssError(
                "Expected the processes that refine labels to live, found one killed.",
                "It may have been for memory: give fewer --crf-workers. What is written stays; run "
                "the same command again. (A script of your own needs `if __name__ == "
                "'__main__':`.)",
                WORKER_FAILED,
            ) from error


def _spread(
    pool: ProcessPoolExecutor, maps: Iterable[Maps], ahead: int, stop: Event
) -> Iterator[tuple[str, Made]]:
    pending: deque[tuple[str, Future[Made]]] = deque()
    for one in maps:
        if len(pending) == ahead:
            image_id, made = pending.popleft()
            yield image_id, _result(made, stop)
        pending.append((one.id, _submit(pool, one)))
    for image_id, made in pending:
        yield image_id, _result(made, stop)


def _result(made: Future[Made], stop: Event) -> Made:
    while not made.done():
        _go_on(stop)
        wait([made], timeout=0.5)
    return made.result()


def _go_on(stop: Event) -> None:
    if stop.is_set():
        raise WsssError("The run ended before its shard.")


def _submit(pool: ProcessPoolExecutor, maps: Maps) -> Future[Made]:
    """Ctrl-C is the parent's alone: a process that this starts never hears of it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        return pool.submit(_make, maps)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_own: LabelMaker  # of a worker process


def _begin_worker(maker: LabelMaker) -> None:
    """One core each, and none outlives the parent."""
    global _own
    _own = maker
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None
    Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _make(maps: Maps) -> Made:
    return _own([maps])[0]
