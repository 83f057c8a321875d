"""Decode images ahead of the network: batches of equal size inside a shard, in a fixed order."""

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image

from wsssfast.data.dataset import Dataset, Item
from wsssfast.errors import BadFile


@dataclass(frozen=True)
class Batch:
    """Images of one size, or one image that could not be read.

    Attributes:
        items: at least one.
        images: RGB, as many as items; empty where `error` is set.
        error: why the one item could not be read.
    """

    items: tuple[Item, ...]
    images: tuple[Image.Image, ...]
    error: str = ""

    def parts(self, most: int) -> Iterator["Batch"]:
        """The same images as batches of at most `most`, of one where `most` is less."""
        most = max(1, most)
        for start in range(0, len(self.items), most):
            some = slice(start, start + most)
            yield Batch(self.items[some], self.images[some])


def load_batches(
    dataset: Dataset, items: Sequence[Item], batch_size: int, workers: int
) -> Iterator[Batch]:
    """Decoded batches of items of equal image size.

    The composition of batches depends on the items and `batch_size` only, not on `workers` or on
    timing. At most `workers` + 1 batches of pixels are held at a time.

    Args:
        dataset: that the items belong to.
        items: of one shard.
        batch_size: most images in a batch.
        workers: decoding threads, at least 1.
    """
    buckets: dict[tuple[int, int], list[Item]] = defaultdict(list)
    for item in items:
        try:
            buckets[dataset.image_size(item)].append(item)
        except BadFile as error:
            yield Batch((item,), (), str(error))
    groups = [
        (bucket[start : start + batch_size], size)
        for size, bucket in sorted(buckets.items())
        for start in range(0, len(bucket), batch_size)
    ]
    with ThreadPoolExecutor(max_workers=workers) as pool:
        waiting: deque[Future[list[Batch]]] = deque()
        for group, size in groups:
            waiting.append(pool.submit(_decode, dataset, group, size))
            if len(waiting) > workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _decode(dataset: Dataset, group: list[Item], size: tuple[int, int]) -> list[Batch]:
    good: list[tuple[Item, Image.Image]] = []
    bad: list[Batch] = []
    for item in group:
        try:
            image = dataset.load_image(item)
            if image.size != size:
                raise BadFile(f"{image.size} pixels, while its header says {size}")
            good.append((item, image))
        except BadFile as error:
            bad.append(Batch((item,), (), str(error)))
    if good:
        items, images = zip(*good, strict=True)
        return [Batch(items, images), *bad]
    return bad
