"""Class activation maps: forward, refine, and sum the flips, for a batch of images of one size."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from wsssfast import kernels
from wsssfast.errors import BadFile, WsssError
from wsssfast.models.classifier import Capture, ClassTokenViT
from wsssfast.preprocess import resize, to_tensor
from wsssfast.shards.format import FORMAT_VERSION

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class CamOptions:
    """How a CAM is computed; every field changes the numbers.

    Attributes:
        stages: which stages of the refinement, names of `kernels.STAGES`.
        ratio: share of related patches in (0, 1] (Fig. 5: best 0.3).
        alpha: weight of the related mean (Table 3: best 1.2; 0 is MCTformer-V2).
        propagation: Eq. 6 as MCTformer computes it (gather), or to the letter (scatter).
        related_by: rank related patches by p2p attention (the paper) or by token similarity.
        include_self: whether a patch may be related to itself.
        c2p_layers: last layers averaged into the class-to-patch attention.
        p2p_layers: last layers averaged into the patch-to-patch attention.
        scales: of the image, summed.
        flip: whether the horizontal flip is run and summed too.
        precision: of the network; maps are float32 always.
    """

    stages: tuple[str, ...] = ("final",)
    ratio: float = 0.3
    alpha: float = 1.2
    propagation: kernels.Propagation = "gather"
    related_by: Literal["attention", "tokens"] = "attention"
    include_self: bool = True
    c2p_layers: int = 3
    p2p_layers: int = 12
    scales: tuple[float, ...] = (1.0,)
    flip: bool = True
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        unknown = [stage for stage in self.stages if stage not in kernels.STAGES]
        if unknown or not self.stages or len(set(self.stages)) != len(self.stages):
            raise WsssError(
                f"Expected stages out of {', '.join(kernels.STAGES)}, each once, found "
                f"{','.join(self.stages)!r}."
            )
        if not self.scales or not all(0.05 <= scale <= 16 for scale in self.scales):
            raise WsssError(f"Expected scales between 0.05 and 16, found {self.scales}.")
        if not 0 < self.ratio <= 1:
            raise WsssError(f"Expected a ratio in (0, 1], found {self.ratio}.")
        if not 0 <= self.alpha <= 1e6:
            raise WsssError(f"Expected an alpha of 0 or more, found {self.alpha}.")
        if min(self.c2p_layers, self.p2p_layers) < 1:
            raise WsssError("Expected at least one layer in each layer range.")

    def to_json(self) -> dict[str, Any]:
        """Every field as plain JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}

    def epsilon(self, stage: str, depth: int) -> float:
        """Epsilon of the min-max for a stage (method §§2, 5).

        [M] adds 1e-8 to maps that are sums over layers; ours are means, hence smaller by the number
        of layers that entered, and the epsilon with them.
        """
        epsilon = 1e-8
        if "c2p" in stage or stage in ("modulated", "final"):
            epsilon /= min(self.c2p_layers, depth)
        if stage.endswith("p2p") or stage == "final":
            epsilon /= min(self.p2p_layers, depth)
        return epsilon


def stage_grids(
    model: ClassTokenViT,
    images: Sequence[Image.Image],
    labels: Sequence[tuple[int, ...]],
    options: CamOptions,
    backend: kernels.Backend = "auto",
) -> list[dict[str, list[NDArray[np.float32]]]]:
    """Patch-grid maps of every image's own classes, flips summed; the hot loop of the export.

    Args:
        model: in evaluation mode.
        images: RGB, all of one size.
        labels: per image sorted 0-based classes; may be empty.
        options: what to compute.
        backend: of `wsssfast.kernels`.

    Returns:
        Per image: stage -> per scale float32 [K, h, w].

    Raises:
        WsssError: a stage that this model has not.
        BadFile: images too large for this machine's memory.
    """
    require_stages(model, options.stages)
    results: list[dict[str, list[NDArray[np.float32]]]] = [
        {stage: [] for stage in options.stages} for _ in images
    ]
    for captured, count in captures(model, images, labels, options, backend):
        for stage, maps in _refine(captured, count, options, backend).items():
            for n, classes in enumerate(labels):
                results[n][stage].append(maps[n, : len(classes)].numpy())
    return results


def captures(
    model: ClassTokenViT,
    images: Sequence[Image.Image],
    labels: Sequence[tuple[int, ...]],
    options: CamOptions,
    backend: kernels.Backend = "auto",
) -> Iterator[tuple[Capture, int]]:
    """One forward pass a scale: what it captured of every image's own classes.

    Args:
        model: in evaluation mode.
        images: RGB, n images of one size.
        labels: per image sorted 0-based classes; may be empty.
        options: scales, flip, layers and precision.
        backend: of `wsssfast.kernels`.

    Yields:
        The capture of n images, or of 2n where mirror images follow them, and n; its C is the
        longest list of labels, shorter ones are padded with class 0.

    Raises:
        BadFile: images too large for this machine's memory.
    """
    require_memory(model, images[0].size, len(images), options)
    device = next(model.parameters()).device
    most = max(1, *map(len, labels)) if labels else 1
    padded = torch.tensor([(*c, *[0] * (most - len(c))) for c in labels], device=device)
    for scale in options.scales:
        resized = [resize(image, scale, model.patch_size) for image in images]
        inputs = to_tensor(resized, model.config).to(device)
        chosen = padded
        if options.flip:
            inputs, chosen = torch.cat([inputs, inputs.flip(-1)]), padded.repeat(2, 1)
        captured = _capture(model, inputs, options, backend)
        yield captured.of_classes(chosen), len(images)


def cams(
    model: ClassTokenViT,
    images: Sequence[Image.Image],
    labels: Sequence[Sequence[int | str]],
    options: CamOptions | None = None,
    *,
    stage: str | None = None,
) -> list[NDArray[np.float32]]:
    """Full-size normalised CAMs of images, for notebooks and scripts.

    Args:
        model: from `wsssfast.load_model`.
        images: PIL images of any sizes; an EXIF orientation is applied.
        labels: per image, classes as 0-based indices or names.
        options: what to compute; the paper's final CAM by default.
        stage: which of the options' stages; the last where None.

    Returns:
        Per image float32 [K, H, W] in [0, 1], maps in the order of the sorted class indices.

    Raises:
        WsssError: unknown classes or stages.
        BadFile: an image too large for this machine's memory.
    """
    from wsssfast.shards.reader import full_size

    options = options or CamOptions()
    stage = stage or options.stages[-1]
    if stage not in options.stages:
        raise WsssError(f"Expected a stage out of {', '.join(options.stages)}, found {stage!r}.")
    results = []
    for turned, wanted in zip(images, labels, strict=True):
        classes = class_indices(model, wanted)
        image = ImageOps.exif_transpose(turned).convert("RGB")
        grids = stage_grids(model, [image], [classes], options)[0][stage]
        size = (image.size[1], image.size[0])
        results.append(full_size(grids, size, options.epsilon(stage, len(model.blocks))))
    return results


def class_indices(model: ClassTokenViT, labels: Sequence[int | str]) -> tuple[int, ...]:
    """Classes given by index or name as sorted indices.

    Raises:
        WsssError: a class that the model does not have.
    """
    if isinstance(labels, str):
        raise WsssError(f"Expected a list of classes an image, found the text {labels!r}.")
    names = {name: index for index, name in enumerate(model.config.class_names)}
    found = set()
    for label in labels:
        index = names.get(label, -1) if isinstance(label, str) else int(label)
        if not 0 <= index < model.num_classes:
            raise WsssError(
                f"Unknown class {label!r}.", f"Expected one of {', '.join(names)[:200]}."
            )
        found.add(index)
    return tuple(sorted(found))


def require_stages(model: ClassTokenViT, stages: Sequence[str]) -> None:
    """Refuse stages of the Original-CAM for a model without patch head (MCTformer-V1)."""
    without = [stage for stage in stages if stage in ("original", "original+p2p")]
    if without and model.head is None:
        raise WsssError(
            f"Expected a model with a patch head for the stage {without[0]!r}; this one "
            "(MCTformer-V1) has none.",
            "Choose original+c2p, original+c2p+p2p, modulated or final.",
        )


def _capture(
    model: ClassTokenViT, inputs: Tensor, options: CamOptions, backend: kernels.Backend
) -> Capture:
    dtype = _DTYPES.get(options.precision)
    with torch.autocast(inputs.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        return model.capture(inputs, options.c2p_layers, options.p2p_layers, backend)


def _refine(
    captured: Capture, images: int, options: CamOptions, backend: kernels.Backend
) -> dict[str, Tensor]:
    """Stages [n, K, h, w] on CPU, the flips summed."""
    h, w = captured.cam.shape[-2:]
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
        backend=backend,
    )
    return {stage: sum_flips(flat, images, (h, w)).cpu() for stage, flat in stages.items()}


def sum_flips(flat: Tensor, images: int, grid: tuple[int, int]) -> Tensor:
    """Maps [n or 2n, K, h*w] as float32 [n, K, h, w], mirror images turned back and added."""
    maps = flat.reshape(*flat.shape[:2], *grid)
    if len(maps) == 2 * images:
        maps = maps[:images] + maps[images:].flip(-1)
    return maps.float()


def most_images(model: ClassTokenViT, size: tuple[int, int], options: CamOptions) -> int:
    """How many images of (width, height) fit one forward pass in half of the memory; may be 0.

    The patch-to-patch attention, its ranking and its propagation take the most: about four
    float32 arrays of N x N for each image and flip; on a GPU, also the kept queries and keys.
    """
    scale = max(options.scales)
    patches = 1
    for side in size:
        patches *= max(1, round(side * scale) // model.patch_size)
    floats = 4 * patches**2
    device = next(model.parameters()).device
    if device.type == "cuda":
        floats += 2 * len(model.blocks) * patches * model.embed_dim
        memory = torch.cuda.mem_get_info(device)[1]
    else:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = 4 * floats * (2 if options.flip else 1)
    return int(memory // 2 // needed)


def require_memory(
    model: ClassTokenViT, size: tuple[int, int], images: int, options: CamOptions
) -> None:
    """Refuse what cannot fit into memory before it is tried.

    Raises:
        BadFile: images too large for this machine.
    """
    if most_images(model, size, options) < images:
        raise BadFile(
            f"{size[0]}x{size[1]} pixels at scale {max(options.scales):g} need more than half of "
            "this machine's memory for patch-to-patch attention; reduce the image or the scales"
        )


def identity(
    class_names: Sequence[str],
    weights: str,
    options: CamOptions,
    fingerprint: str,
    shard_size: int,
) -> dict[str, Any]:
    """Configuration identity of CAM shards: all that changes the numbers, nothing else."""
    return {
        "format_version": FORMAT_VERSION,
        "class_names": list(class_names),
        "weights": weights,
        "dataset": fingerprint,
        "labels": "image",
        "shard_size": shard_size,
        **options.to_json(),
    }
