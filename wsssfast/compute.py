"""Class activation maps: forward, refine, and sum the flips, for a batch of images of one size."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from wsssfast import kernels
from wsssfast.cam_options import CamOptions
from wsssfast.errors import WsssError
from wsssfast.kernels.affinity import near_affinity
from wsssfast.models.classifier import Capture, ClassTokenViT
from wsssfast.models.losses import ranked_mean
from wsssfast.precision import autocast
from wsssfast.preprocess import normalise, resize

OF_PATCH_HEAD = ("original", "original+p2p")  # stages
_NEAR = "affinity of near patches"  # beside stages on the way to the host

Labels = tuple[int, ...]  # of an image: sorted 0-based classes
Pixels = tuple[NDArray[np.uint8], ...]  # of an image: per scale RGB [H, W, 3]
Grids = dict[str, list[NDArray[np.float32]]]  # of an image: stage -> per scale [K, h, w]


@dataclass(frozen=True)
class BatchMaps:
    """The maps of a batch, on their way to the host.

    Attributes:
        labels: per image the classes of its maps.
        maps: per scale stage -> [n, K, h, w] on the host; K is the longest list of labels. A stage
            may be absent at some of the scales.
        arrive: waits until they are there.
        affinities: float32 [n, 34, h, w] of the first scale, on the host; None where not asked for.
    """

    labels: tuple[Labels, ...]
    maps: list[dict[str, Tensor]]
    arrive: list[Callable[[], None]]
    affinities: Tensor | None = None

    def grids(self) -> list[Grids]:
        """Wait for the maps; per image stage -> per scale float32 [K, h, w]."""
        for wait in self.arrive:
            wait()
        return [
            {
                stage: [
                    maps[stage][n, : len(classes)].numpy().copy()
                    for maps in self.maps
                    if stage in maps
                ]
                for stage in dict.fromkeys(stage for maps in self.maps for stage in maps)
            }
            for n, classes in enumerate(self.labels)
        ]


def prepare(image: Image.Image, options: CamOptions, patch_size: int) -> Pixels:
    """What the network sees of an RGB image: at each scale its pixels."""
    return tuple(np.asarray(resize(image, scale, patch_size)) for scale in options.scales)


def batch_maps(
    model: ClassTokenViT,
    pixels: Sequence[Pixels],
    labels: Sequence[Labels],
    options: CamOptions,
    backend: kernels.Backend = "auto",
    *,
    affinity: bool = False,
) -> BatchMaps:
    """Patch-grid maps of every image's own classes, flips summed; the hot loop of the export.

    On a GPU it returns when all work is queued; the small maps come back on a stream of their own.

    Args:
        model: in evaluation mode.
        pixels: per image as `prepare` makes them, all of one size.
        labels: per image, may be empty; replaced where the options predict them.
        options: what to compute.
        backend: of `wsssfast.kernels`.
        affinity: whether affinities of near patches by their attention are wanted too.

    Raises:
        WsssError: a stage that this model has not.
    """
    require_stages(model, options.stages)
    maps: list[dict[str, Tensor]] = []
    arrive: list[Callable[[], None]] = []
    known, near = tuple(labels), None
    for captured, known in captures(model, pixels, labels, options, backend):  # noqa: B007
        found = _refine(captured, len(pixels), options, backend)
        if affinity and not maps:
            found[_NEAR] = near_affinities(captured, len(pixels))
        host, wait = to_host(found)
        near = host.pop(_NEAR, near)
        maps.append(host)
        arrive.append(wait)
    return BatchMaps(known, maps, arrive, near)


def stage_grids(
    model: ClassTokenViT,
    images: Sequence[Image.Image],
    labels: Sequence[Labels],
    options: CamOptions,
    backend: kernels.Backend = "auto",
) -> list[Grids]:
    """`batch_maps` of RGB images of one size, waited for."""
    pixels = [prepare(image, options, model.patch_size) for image in images]
    return batch_maps(model, pixels, labels, options, backend).grids()


def captures(
    model: ClassTokenViT,
    pixels: Sequence[Pixels],
    labels: Sequence[Labels],
    options: CamOptions,
    backend: kernels.Backend = "auto",
) -> Iterator[tuple[Capture, tuple[Labels, ...]]]:
    """One forward pass a scale: what it captured of every image's own classes.

    Args:
        model: in evaluation mode.
        pixels: per image as `prepare` makes them, n of one size.
        labels: per image, may be empty; replaced where the options predict them.
        options: scales, flip, layers and precision.
        backend: of `wsssfast.kernels`.

    Yields:
        The capture of n images, or of 2n where mirror images follow them, and the labels of each
        image; its C is the longest list of labels, shorter ones are padded with class 0.
    """
    device = next(model.parameters()).device
    known = None if options.predict_above is not None else tuple(labels)
    for of_scale in zip(*pixels, strict=True):
        inputs = normalise(_to_device(of_scale, device), model.config)
        if options.flip:
            inputs = torch.cat([inputs, inputs.flip(-1)])
        captured = _capture(model, inputs, options, backend)
        if known is None:  # by the first scale
            decay = None if model.head is None else model.config.patch_decay
            known = predicted_labels(captured, len(pixels), options, decay)
        most = max(1, *map(len, known))
        padded = [(*c, *[0] * (most - len(c))) for c in known]
        chosen = torch.tensor(padded, pin_memory=device.type == "cuda")
        chosen = chosen.to(device, non_blocking=True)
        yield captured.of_classes(chosen.repeat(1 + options.flip, 1)), known


def predicted_labels(
    captured: Capture, images: int, options: CamOptions, decay: float | None
) -> tuple[Labels, ...]:
    """The classes that the classifier sees in each image.

    A class's score is the sigmoid of its class logit (Eq. 7) and that of its patch logit (Eq. 9),
    averaged over both and over the mirror image.

    Args:
        captured: all classes of n images, or of 2n where mirror images follow them.
        images: n.
        options: `predict_above` is the score above which a class counts as present.
        decay: of the patch logits (`ClassifierConfig.patch_decay`); None where there are none.
    """
    assert options.predict_above is not None
    scores = captured.class_logits.sigmoid()
    if decay is not None:
        scores = (scores + ranked_mean(captured.cam, decay).sigmoid()) / 2
    present = scores.reshape(-1, images, scores.shape[1]).mean(0) > options.predict_above
    return tuple(tuple(row.nonzero().flatten().tolist()) for row in present.cpu())


def require_stages(model: ClassTokenViT, stages: Sequence[str]) -> None:
    """Refuse stages of the Original-CAM for a model without patch head (MCTformer-V1)."""
    without = [stage for stage in stages if stage in OF_PATCH_HEAD]
    if without and model.head is None:
        raise WsssError(
            f"Expected a model with a patch head for the stage {without[0]!r}; this one "
            "(MCTformer-V1) has none.",
            "Choose original+c2p, original+c2p+p2p, modulated or final.",
        )


def _capture(
    model: ClassTokenViT, inputs: Tensor, options: CamOptions, backend: kernels.Backend
) -> Capture:
    with autocast(inputs.device, options.precision):
        return model.capture(inputs, options.c2p_layers, options.p2p_layers, backend)


def _refine(
    captured: Capture, images: int, options: CamOptions, backend: kernels.Backend
) -> dict[str, Tensor]:
    """Stages [n, K, h, w], the flips summed."""
    h, w = captured.cam.shape[-2:]
    with autocast(captured.cam.device, "fp32"):  # whatever the caller is within
        stages = kernels.refine(
            captured.cam.flatten(2),
            captured.c2p,
            captured.p2p,
            options.stages,
            tokens=captured.tokens if options.related_by == "tokens" else None,
            ratio=options.ratio,
            alpha=options.alpha,
            include_self=options.include_self,
            propagation=options.propagation,
            fuse=options.fuse,
            backend=backend,
        )
    return {stage: sum_flips(flat, images, (h, w)) for stage, flat in stages.items()}


def sum_flips(flat: Tensor, images: int, grid: tuple[int, int]) -> Tensor:
    """Maps [n or 2n, K, h*w] as float32 [n, K, h, w], mirror images turned back and added."""
    maps = flat.reshape(*flat.shape[:2], *grid)
    if len(maps) == 2 * images:
        maps = maps[:images] + maps[images:].flip(-1)
    return maps.float()


def near_affinities(captured: Capture, images: int) -> Tensor:
    """Affinities of near patches by attention; mirror images are turned back and averaged.

    Args:
        captured: of n images, or of 2n where mirror images follow them.
        images: n.

    Returns:
        float32 [n, 34, h, w].
    """
    h, w = captured.cam.shape[-2:]
    p2p = captured.p2p
    if len(p2p) == 2 * images:
        there, back = p2p[:images], p2p[images:].reshape(images, h, w, h, w)
        p2p = (there + back.flip(2, 4).reshape(there.shape)) / 2
    return torch.stack([near_affinity(one.float(), (h, w)) for one in p2p])


def _to_device(images: Sequence[NDArray[np.uint8]], device: torch.device) -> Tensor:
    """uint8 [n, H, W, 3]; to a GPU through pinned memory, without waiting."""
    on_gpu = device.type == "cuda"
    pixels = torch.empty((len(images), *images[0].shape), dtype=torch.uint8, pin_memory=on_gpu)
    np.stack(images, out=pixels.numpy())
    return pixels.to(device, non_blocking=True)


def to_host(maps: dict[str, Tensor]) -> tuple[dict[str, Tensor], Callable[[], None]]:
    """Maps on the host, and what waits until they are there."""
    device = next(iter(maps.values())).device
    if device.type != "cuda":
        return maps, lambda: None
    stream = _copy_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    host = {}
    with torch.cuda.stream(stream):
        for stage, found in maps.items():
            found.record_stream(stream)
            host[stage] = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
            host[stage].copy_(found, non_blocking=True)
    return host, stream.record_event().synchronize


@cache
def _copy_stream(device: torch.device) -> "torch.cuda.Stream":
    """The stream on which a GPU's maps come back while it goes on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
