"""Masks of images from their stored maps."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from wsssfast.data.dataset import Dataset
from wsssfast.errors import BadFile, WsssError
from wsssfast.kernels import CrfBackend, choose_crf, full_size_cam
from wsssfast.labels.makers import Made, crf_at, made_of, sharing
from wsssfast.labels.options import VIT, LabelOptions
from wsssfast.labels.rules import pseudo_labels
from wsssfast.labels.walk import LARGEST, Affinity, seen_by
from wsssfast.memory import CRF_BYTES, NETWORK_BYTES, usable_memory
from wsssfast.models.checkpoint import load_affinity, load_again
from wsssfast.shards.label_shards import LabelRecord
from wsssfast.shards.writer import Grid
from wsssfast.torchrun import own_cores

_BATCH_PIXELS = 1 << 22  # of images that a GPU refines together
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
        workers_option: that sets the number of processes.
    """

    options: LabelOptions
    dataset: Dataset | None = None
    device: str = "cpu"
    backend: CrfBackend = "auto"
    network: Path | None = None
    share: int = 1
    workers_option: str = "--crf-workers"

    def __call__(self, batch: Sequence[Maps]) -> list[Made]:
        """A record of each, or the reason why there is none; one after the other where not all."""
        return made_of(self._together, batch, lambda one: one.image_size)

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
        net = load_again(load_affinity, self.network, walk.by, self.device)
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
        needed = pixels * (CRF_BYTES + 8 * columns) if self.options.crfs else pixels * 8 * columns
        if self.network:
            needed = max(needed, min(pixels, LARGEST) * NETWORK_BYTES)
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
        crf_at(backend, place)
    if options.walk and (network is None) != (options.walk.by == VIT):
        raise WsssError("Expected an AffinityNet's checkpoint exactly where scores walk over it.")
    images = dataset if options.looks else None
    return LabelMaker(options, images, place, backend, network, sharing(place, crf_workers))
