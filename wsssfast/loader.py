"""Decode images ahead of the network: batches of equal size inside a shard, in a fixed order."""

import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from PIL import Image

from wsssfast.data.dataset import Dataset, Item
from wsssfast.errors import BadFile

T = TypeVar("T")
Size = tuple[int, int]
TOO_LARGE = "pixels need more than half of the memory; reduce the image or the scales"


@dataclass(frozen=True)
class Batch(Generic[T]):
    """Images of one size, or one image that could not be used.

    Attributes:
        shard: number of the shard that they belong to.
        items: at least one; none says that this shard has no further batch.
        size: (width, height) of the images.
        pixels: what was made of each image; empty where `error` is set.
        error: why the one item could not be used.
    """

    shard: int
    items: tuple[Item, ...] = ()
    size: Size = (0, 0)
    pixels: tuple[T, ...] = ()
    error: str = ""

    def halves(self) -> "list[Batch[T]]":
        """The same images as two batches."""
        middle = len(self.items) // 2
        return [
            Batch(self.shard, self.items[some], self.size, self.pixels[some])
            for some in (slice(middle), slice(middle, None))
        ]


@contextmanager
def load_batches(
    dataset: Dataset,
    shards: Iterable[tuple[int, Sequence[Item]]],
    most: Callable[[Size], int],
    prepare: Callable[[Image.Image], T],
    workers: int,
) -> Iterator[Iterator[Batch[T]]]:
    """Decoded batches of items of equal image size, made by threads while earlier ones are used.

    The composition of batches depends on the items and `most` only, not on `workers` or on timing.
    Besides the batch in use, at most two batches or 2 x `workers` images are held at a time.

    Args:
        dataset: that the items belong to.
        shards: number and items of each; asked for one after the other, as late as possible.
        most: (width, height) -> most images of that size in a batch; 0 refuses them.
        prepare: what decoding threads do with each RGB image.
        workers: decoding threads, at least 1.

    Yields:
        The batches; each shard ends with a batch without items.
    """
    room = _Room(2 * workers)
    ready: queue.SimpleQueue[_Coming[T] | BaseException | None] = queue.SimpleQueue()

    def produce(pool: ThreadPoolExecutor) -> None:
        try:
            batch: Batch[T]
            for batch in _plan(dataset, shards, most, pool):
                if not room.enter(len(batch.items)):
                    return
                ready.put((batch, [pool.submit(_decode, dataset, item, batch.size, prepare)
                                   for item in batch.items if not batch.error]))  # fmt: skip
            ready.put(None)
        except CancelledError:
            return
        except BaseException as error:  # raised where the batches are used
            ready.put(error)

    def consume() -> Iterator[Batch[T]]:
        while (coming := ready.get()) is not None:
            if isinstance(coming, BaseException):
                raise coming
            batch, images = coming
            arrived = [image.result() for image in images]
            room.leave(len(batch.items))
            yield from _arrived(batch, arrived)

    pool = ThreadPoolExecutor(workers, "decode")
    producer = threading.Thread(target=produce, args=(pool,), name="load", daemon=True)
    producer.start()
    try:
        yield consume()
    finally:
        room.close()
        pool.shutdown(wait=True, cancel_futures=True)
        producer.join(60)


_Coming = tuple[Batch[T], list[Future[T | str]]]


class _Room:
    """How many images are in flight, so that no more come in than are wanted."""

    def __init__(self, images: int) -> None:
        self._images, self._held, self._closed = images, 0, False
        self._changed = threading.Condition()

    def enter(self, count: int) -> bool:
        """Wait until there is room for a batch; False where none will be any more."""
        most = max(self._images, 2 * count)

        def free() -> bool:
            return self._closed or not count or self._held + count <= most

        with self._changed:
            self._changed.wait_for(free)
            self._held += count
            return not self._closed

    def leave(self, count: int) -> None:
        """A batch is used up."""
        with self._changed:
            self._held -= count
            self._changed.notify()

    def close(self) -> None:
        """Nothing more is wanted."""
        with self._changed:
            self._closed = True
            self._changed.notify()


def _plan(
    dataset: Dataset,
    shards: Iterable[tuple[int, Sequence[Item]]],
    most: Callable[[Size], int],
    pool: ThreadPoolExecutor,
) -> Iterator[Batch[T]]:
    """Batches without pixels, and their ends of shards."""
    for shard, items in shards:
        buckets: dict[Size, list[Item]] = defaultdict(list)
        sizes = list(pool.map(lambda item: _size(dataset, item), items))
        for item, size in zip(items, sizes, strict=True):
            if isinstance(size, str):
                yield Batch(shard, (item,), error=size)
            elif most(size) < 1:
                yield Batch(shard, (item,), error=f"{size[0]}x{size[1]} {TOO_LARGE}")
            else:
                buckets[size].append(item)
        for size, bucket in sorted(buckets.items(), key=_large_first):
            done = 0
            while done < len(bucket):
                some = tuple(bucket[done : done + max(1, most(size))])
                yield Batch(shard, some, size)
                done += len(some)
        yield Batch(shard)


def _large_first(bucket: tuple[Size, list[Item]]) -> tuple[int, Size]:
    """What does not fit into memory fails early, and the allocator's blocks serve the rest."""
    (width, height), _ = bucket
    return -width * height, (width, height)


def _size(dataset: Dataset, item: Item) -> Size | str:
    """(width, height) from the header, or why there is none."""
    try:
        return dataset.image_size(item)
    except BadFile as error:
        return str(error)


def _decode(
    dataset: Dataset, item: Item, size: Size, prepare: Callable[[Image.Image], T]
) -> T | str:
    """What is made of an image, or why nothing could be."""
    try:
        image = dataset.load_image(item)
        if image.size != size:
            return f"{image.size} pixels, while its header says {size}"
        return prepare(image)
    except BadFile as error:
        return str(error)
    except MemoryError:
        return f"not enough memory to decode {size[0]}x{size[1]} pixels"


def _arrived(batch: Batch[T], images: list[T | str]) -> Iterator[Batch[T]]:
    """The images of a batch that could be decoded, then each that could not."""
    if not images:
        yield batch
        return
    good = [(i, x) for i, x in zip(batch.items, images, strict=True) if not isinstance(x, str)]
    if good:
        items, pixels = zip(*good, strict=True)
        yield Batch(batch.shard, items, batch.size, pixels)
    for item, reason in zip(batch.items, images, strict=True):
        if isinstance(reason, str):
            yield Batch(batch.shard, (item,), error=reason)
