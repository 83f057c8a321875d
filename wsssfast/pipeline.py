"""From batches of images to the records of shards, with a device that is never kept waiting.

Threads decode the next batches while the network runs, on a CPU on several batches at a time; maps
of the last batch come back meanwhile, and one more thread writes what is complete.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from threading import Event

import torch

from wsssfast.cam_options import CamOptions
from wsssfast.compute import BatchMaps, Labels, Pixels, batch_maps, prepare
from wsssfast.data.dataset import Dataset, Item
from wsssfast.errors import BadFile, WsssError
from wsssfast.lanes import lanes
from wsssfast.loader import Batch, load_batches
from wsssfast.memory import give_back, good_batch, most_images, ran_out
from wsssfast.models.classifier import ClassTokenViT
from wsssfast.pace import Pace
from wsssfast.shards.writer import CamRecord, Grid

_MOST_IN_VAIN = 3
NO_CAM = "no CAM: "  # begins the reason of an image that was read but has none
Compute = Callable[[Sequence[Pixels], Sequence[Labels]], BatchMaps]


@dataclass
class ShardWork:
    """What is known of a shard so far.

    Attributes:
        index: its number.
        records: of the images that are done.
        failed: id -> reason of those that could not be.
        affinities: id -> float32 [34, h, w] of near patches, where asked for.
    """

    index: int
    records: list[CamRecord] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    affinities: dict[str, Grid] = field(default_factory=dict)


def compute_shards(
    model: ClassTokenViT,
    dataset: Dataset,
    shards: Iterable[tuple[int, Sequence[Item]]],
    options: CamOptions,
    write: Callable[[ShardWork], None],
    *,
    batch_size: int | None,
    decode_workers: int,
    pace: Pace,
    affinity: bool = False,
    overlap: bool = True,
    stop: Event | None = None,
    compute: Compute | None = None,
) -> None:
    """Compute the CAMs of shards and hand each complete one to `write`, in another thread.

    At most one shard is waiting to be written while the next is computed. A batch for which there
    is not enough memory is tried again as halves, and later ones are made smaller.

    Args:
        model: in evaluation mode, on the device to use.
        dataset: that the items belong to.
        shards: number and items of each; asked for as late as possible.
        options: what to compute; of other maps, the scales and layers that bound their memory.
        write: called with one complete shard at a time; what it raises is raised here.
        batch_size: most images in a forward pass; None chooses by size, model and device.
        decode_workers: decoding threads.
        pace: told of images that are finished and of waiting.
        affinity: whether affinities of near patches are wanted too.
        overlap: whether the next shard is computed while `write` is at work.
        stop: set where the run ends early, for a `write` that takes long.
        compute: from pixels and labels of a batch to maps; None: the CAMs of `options`.

    Raises:
        WsssError: there is no memory even for single images; or what `write` raises.
    """
    sizes = _BatchSizes(model, options, batch_size, pace)

    def cams(pixels: Sequence[Pixels], labels: Sequence[Labels]) -> BatchMaps:
        return batch_maps(model, pixels, labels, options, affinity=affinity)

    device = next(model.parameters()).device
    writing: Future[None] | None = None
    with (
        ThreadPoolExecutor(1, "write") as writer,
        load_batches(
            dataset, shards, sizes.most, lambda image: prepare(image, options, model.patch_size),
            decode_workers,
        ) as batches,
    ):  # fmt: skip
        try:
            launched = _launched(device, batches, compute or cams, sizes, pace)
            for work in _collected(launched, pace):
                if writing and overlap:
                    with pace.waiting("write"):
                        writing.result()
                writing = writer.submit(write, work)
                if not overlap:
                    with pace.waiting("write"):
                        writing.result()
            if writing:
                with pace.waiting("write"):
                    writing.result()
        except BaseException:
            if stop:
                stop.set()
            raise


class _BatchSizes:
    """How many images of a size make a batch, and what has been learnt of the memory."""

    def __init__(
        self, model: ClassTokenViT, options: CamOptions, wanted: int | None, pace: Pace
    ) -> None:
        self._model, self._options, self._wanted, self._pace = model, options, wanted, pace
        self._fits = cache(lambda size: most_images(model, size, options))
        self._share = 1.0  # of the images that fit by the estimate
        self._in_vain = 0  # single images without memory, one after the other

    def most(self, size: tuple[int, int]) -> int:
        """Most images of (width, height) in a batch; 0 where not even one fits."""
        fits: int = self._fits(size)
        wanted = self._wanted or good_batch(self._model, size, self._options)
        return min(fits, wanted, max(1, int(fits * self._share)))

    def share(self, batch: Batch[Pixels]) -> float:
        """Of the memory that batches may take together, what one takes by the estimate."""
        return len(batch.pixels) / self._fits(batch.size) if batch.pixels else 0.0

    def fitted(self) -> None:
        """A batch found its memory."""
        self._in_vain = 0

    def too_many(self, images: int, size: tuple[int, int]) -> None:
        """So many of that size found no memory.

        Raises:
            WsssError: there is none for several single images in a row.
        """
        self._pace.tell("out of memory", batch=images, size=size)
        if images > 1:
            self._share = min(self._share, images // 2 / self._fits(size))
            return
        self._in_vain += 1
        if self._in_vain == _MOST_IN_VAIN:
            raise WsssError(
                f"Expected memory for an image of {size[0]}x{size[1]} pixels, found too little for "
                f"{_MOST_IN_VAIN} images in a row.",
                "Free the GPU or the machine from other work and run the same command again; what "
                "is written stays.",
            )


_Launched = tuple[Batch[Pixels], BatchMaps | None]  # None: nothing to wait for


def _launched(
    device: torch.device,
    batches: Iterator[Batch[Pixels]],
    compute: Compute,
    sizes: _BatchSizes,
    pace: Pace,
) -> Iterator[_Launched]:
    """Batches whose computation has begun, with others begun after them."""
    begun: deque[tuple[Future[list[_Launched]], float]] = deque()

    def oldest() -> list[_Launched]:
        with pace.waiting("device"):
            return begun.popleft()[0].result()

    with lanes(device) as (submit, ahead):
        while True:
            with pace.waiting("decode"):
                batch = next(batches, None)
            if batch is None:
                break
            share = sizes.share(batch)
            while begun and (len(begun) == ahead or share + sum(taken for _, taken in begun) > 1):
                yield from oldest()
            with pace.waiting("device"):
                begun.append((submit(_parts, batch, compute, sizes), share))
        while begun:
            yield from oldest()


def _parts(batch: Batch[Pixels], compute: Compute, sizes: _BatchSizes) -> list[_Launched]:
    """A batch with its maps, as several where there is not enough memory for all at once."""
    if batch.error or not batch.items:
        return [(batch, None)]
    try:
        labels = [item.labels for item in batch.items]
        maps = compute(batch.pixels, labels)
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        maps = None
    if maps:
        sizes.fitted()
        return [(batch, maps)]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    sizes.too_many(len(batch.items), batch.size)
    if len(batch.items) == 1:
        reason = f"not enough memory for {batch.size[0]}x{batch.size[1]} pixels"
        return [(Batch(batch.shard, batch.items, error=reason), None)]
    return [part for half in batch.halves() for part in _parts(half, compute, sizes)]


def _collected(launched: Iterator[_Launched], pace: Pace) -> Iterator[ShardWork]:
    """Complete shards, their records sorted by id."""
    work: ShardWork | None = None
    for batch, maps in launched:
        work = work or ShardWork(batch.shard)
        if not batch.items:
            work.records.sort(key=lambda record: record.id)
            yield work
            work = None
        elif maps is None:
            work.failed[batch.items[0].id] = batch.error
            pace.advance(1, 1)
        else:
            with pace.waiting("device"):
                grids = maps.grids()
            give_back()
            before = len(work.failed)
            for n, (item, labels) in enumerate(zip(batch.items, maps.labels, strict=True)):
                try:
                    size = (batch.size[1], batch.size[0])
                    work.records.append(CamRecord(item.id, size, labels, grids[n]))
                except BadFile as error:
                    work.failed[item.id] = f"{NO_CAM}{error}"
                if maps.affinities is not None:
                    work.affinities[item.id] = maps.affinities[n].numpy().copy()
            pace.advance(len(batch.items), len(work.failed) - before)
