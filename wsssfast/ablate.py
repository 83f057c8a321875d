"""Score many settings of the refinement in one pass: one capture of attention an image."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsssfast import kernels
from wsssfast.cam_options import CamOptions
from wsssfast.compute import Pixels, captures, prepare, require_stages, sum_flips
from wsssfast.data.dataset import Dataset, Item
from wsssfast.errors import BadFile, WsssError
from wsssfast.evaluate import THRESHOLDS, CamScorer, Truth
from wsssfast.evaluate.masks import naming
from wsssfast.kernels import reference
from wsssfast.loader import Batch, load_batches
from wsssfast.memory import most_images
from wsssfast.models.classifier import Capture, ClassTokenViT
from wsssfast.shards.reader import full_size

_MODULATED = ("modulated", "final")
_PROPAGATED = ("original+p2p", "original+c2p+p2p", "final")


@dataclass(frozen=True)
class Setting:
    """One way to refine; fields that do not matter for its stage are None.

    Attributes:
        stage: of `kernels.STAGES`.
        c2p_layers: last layers averaged into the class-to-patch attention.
        propagation: gather or scatter.
        related_by: what ranks the related patches.
        ratio: share of related patches.
        alpha: weight of the related mean.
    """

    stage: str
    c2p_layers: int | None = None
    propagation: Literal["gather", "scatter"] | None = None
    related_by: Literal["attention", "tokens"] | None = None
    ratio: float | None = None
    alpha: float | None = None

    def options(self, base: CamOptions) -> CamOptions:
        """`base` with this setting in it."""
        chosen = {k: v for k, v in asdict(self).items() if v is not None and k != "stage"}
        return replace(base, stages=(self.stage,), **chosen)


def settings_of(
    base: CamOptions,
    *,
    stages: Sequence[str] = kernels.STAGES,
    propagations: Sequence[Literal["gather", "scatter"]] = ("gather", "scatter"),
    related_by: Sequence[Literal["attention", "tokens"]] = ("attention", "tokens"),
    ratios: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5),
    alphas: Sequence[float] = (0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8),
    c2p_layers: Sequence[int] = (1, 3),
    grid: bool = False,
) -> tuple[Setting, ...]:
    """The settings to score.

    Args:
        base: where each of ratio and alpha stays while the other is varied.
        stages: all combined with orientations, rankings and layer ranges, at base's ratio and
            alpha.
        propagations: orientations of Eq. 6.
        related_by: rankings.
        ratios: varied at base's alpha.
        alphas: varied at base's ratio.
        c2p_layers: layer ranges.
        grid: every ratio with every alpha instead of one at a time.
    """
    lines = [(base.ratio, alpha) for alpha in alphas] + [(ratio, base.alpha) for ratio in ratios]
    pairs = [(base.ratio, base.alpha), *(product(ratios, alphas) if grid else lines)]
    found: dict[Setting, None] = {}
    for stage in stages:
        layers = c2p_layers if "c2p" in stage or stage in _MODULATED else (None,)
        ways = propagations if stage in _PROPAGATED else (None,)
        for k, way in product(layers, ways):
            if stage not in _MODULATED:
                found[Setting(stage, k, way)] = None
                continue
            for rank, (ratio, alpha) in product(related_by, pairs):
                found[Setting(stage, k, way, rank, ratio, alpha)] = None
    return tuple(found)


def ablate(
    model: ClassTokenViT,
    dataset: Dataset,
    settings: Sequence[Setting],
    base: CamOptions,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    batch_size: int = 8,
    decode_workers: int = 2,
    score_workers: int = 2,
    progress: Callable[[int], None] = lambda images: None,
) -> tuple[dict[Setting, dict[str, Any]], dict[str, str]]:
    """Score every setting against a data set's masks; nothing is stored on the way.

    Args:
        model: in evaluation mode, on the device to use.
        dataset: with masks; its image-level labels choose the classes.
        settings: what to score.
        base: scales, flip, precision and whatever a setting leaves open.
        thresholds: background scores to sweep.
        batch_size: most images of equal size in one forward pass.
        decode_workers: decoding threads.
        score_workers: scoring threads.
        progress: called with a number of images each time some are finished.

    Returns:
        setting -> result of `CamScorer`, and id -> reason of images that could not be scored.

    Raises:
        WsssError: a stage that this model has not, a mask that does not fit its image, or no masks
            at all.
    """
    if min(batch_size, decode_workers, score_workers) < 1:
        raise WsssError("Expected a batch size and numbers of workers of at least 1.")
    require_stages(model, sorted({setting.stage for setting in settings}))
    scorers = {setting: CamScorer(dataset.class_names, thresholds) for setting in settings}
    most = max(setting.c2p_layers or 1 for setting in settings)
    wide = replace(base, c2p_layers=max(most, base.c2p_layers))
    failed: dict[str, str] = {}
    depth = len(model.blocks)
    epsilons = {s: s.options(base).epsilon(s.stage, depth) for s in settings}
    with (
        ThreadPoolExecutor(score_workers) as pool,
        load_batches(
            dataset, [(0, dataset.items)],
            cache(lambda size: min(batch_size, most_images(model, size, wide))),
            lambda image: prepare(image, wide, model.patch_size), decode_workers,
        ) as batches,
    ):  # fmt: skip
        for batch in batches:
            if batch.error:
                failed[batch.items[0].id] = batch.error
            else:
                images = _masked(dataset, batch, failed)
                grids = _grids(model, images, settings, base, wide)
                jobs = [
                    (scorers[setting], epsilons[setting],
                     [(item, truth, batch.size, [grid[n, : len(item.labels)] for grid in found])
                      for n, (item, _, truth) in enumerate(images)])
                    for setting, found in grids.items()
                ]  # fmt: skip
                list(pool.map(_score, jobs))
            progress(len(batch.items))
    if not any(scorer.images for scorer in scorers.values()):
        raise WsssError(
            f"Expected masks to score against, found none for {len(dataset)} images.",
            "Scoring needs a data set with masks.",
        )
    return {setting: scorer.result() for setting, scorer in scorers.items()}, failed


_Masked = tuple[Item, Pixels, Truth]
_Scored = tuple[Item, Truth, tuple[int, int], list[NDArray[np.float32]]]


def _score(job: tuple[CamScorer, float, list[_Scored]]) -> None:
    """Count some images for one scorer: no two threads add to the same counts."""
    scorer, epsilon, images = job
    for item, truth, (width, height), grids in images:
        with naming(item.id):
            scorer.add_truth(truth, full_size(grids, (height, width), epsilon))


def _masked(dataset: Dataset, batch: Batch[Pixels], failed: dict[str, str]) -> list[_Masked]:
    """Those of the images that have a mask; `failed` gets unreadable ones."""
    found = []
    for item, pixels in zip(batch.items, batch.pixels, strict=True):
        try:
            mask = dataset.load_mask(item)
        except BadFile as error:
            failed[item.id] = f"mask: {error}"
            continue
        if mask is not None:
            with naming(item.id):
                labels = np.array(item.labels, np.int64)
                truth = Truth.of(mask, labels, len(dataset.class_names))
            found.append((item, pixels, truth))
    return found


def _grids(
    model: ClassTokenViT,
    items: Sequence[_Masked],
    settings: Sequence[Setting],
    base: CamOptions,
    wide: CamOptions,
) -> dict[Setting, list[NDArray[np.float32]]]:
    """Per setting and scale, maps [n, K, h, w] with the flips summed; nothing without items."""
    grids: dict[Setting, list[NDArray[np.float32]]] = {setting: [] for setting in settings}
    if not items:
        return {}
    pixels, labels = [found for _, found, _ in items], [item.labels for item, _, _ in items]
    for capture, _ in captures(model, pixels, labels, wide):
        maps = _Refinement(capture, base, len(model.blocks))
        h, w = capture.cam.shape[-2:]
        for setting in settings:
            grids[setting].append(sum_flips(maps.of(setting), len(items), (h, w)).cpu().numpy())
    return grids


class _Refinement:
    """The settings' maps of one capture; what several of them need is computed once."""

    def __init__(self, capture: Capture, base: CamOptions, depth: int) -> None:
        self.capture, self.base, self.depth = capture, base, depth
        self.cam = capture.cam.flatten(2)
        self.means: dict[tuple[str, float, int], Tensor] = {}
        self.similarities: dict[str, Tensor] = {}

    def of(self, setting: Setting) -> Tensor:
        """[B, K, N]."""
        layers = min(setting.c2p_layers or self.base.c2p_layers, self.depth)
        c2p = self.capture.c2p_by_layer[-layers:].mean(0)
        if setting.stage.startswith("original") and "c2p" not in setting.stage:
            start = torch.relu(self.cam)
        elif setting.stage in _MODULATED:
            assert setting.related_by and setting.ratio and setting.alpha is not None
            means = self._mean(setting.related_by, setting.ratio, layers, c2p)
            start = reference.couple(self.cam, reference.modulate(c2p, means, setting.alpha))
        else:
            start = reference.couple(self.cam, c2p)
        if setting.propagation is None:
            return start
        return kernels.propagate(start, self.capture.p2p, setting.propagation)

    def _mean(self, rank: str, ratio: float, layers: int, c2p: Tensor) -> Tensor:
        key = (rank, ratio, layers)
        if key not in self.means:
            if rank not in self.similarities:
                self.similarities[rank] = self.capture.similarity(rank)
            self.means[key] = kernels.related_mean(
                c2p, self.similarities[rank], ratio, include_self=self.base.include_self
            )
        return self.means[key]
