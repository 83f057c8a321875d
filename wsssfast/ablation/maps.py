"""The maps of many settings from as few forward passes as they need."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from wsssfast import kernels
from wsssfast.ablation.settings import Setting
from wsssfast.cam_options import CamOptions
from wsssfast.compute import BatchMaps, Labels, Pixels, captures, sum_flips, to_host
from wsssfast.kernels import reference
from wsssfast.models.classifier import Capture, ClassTokenViT


def setting_maps(
    model: ClassTokenViT,
    pixels: Sequence[Pixels],
    labels: Sequence[Labels],
    settings: Sequence[Setting],
    base: CamOptions,
) -> BatchMaps:
    """Patch-grid maps of every image's own classes, flips summed, under each setting's number.

    One forward pass a scale serves all settings of equal `p2p_layers`.

    Args:
        model: in evaluation mode.
        pixels: per image as `prepare` makes them of base's scales, all of one size.
        labels: per image, may be empty.
        settings: whose scales are all among base's.
        base: scales, flip, precision and whatever a setting leaves open.
    """
    depth = len(model.blocks)
    numbered = list(enumerate(settings))
    layers = {n: min(s.p2p_layers or base.p2p_layers, depth) for n, s in numbered}
    c2p_layers = max(s.c2p_layers or 1 for s in settings)
    maps: list[dict[str, Tensor]] = [{} for _ in base.scales]
    for p2p_layers in sorted(set(layers.values())):
        group = [(n, s) for n, s in numbered if layers[n] == p2p_layers]
        seen = [n for n, x in enumerate(base.scales) if any(x in s.scales for _, s in group)]
        wide = replace(base, c2p_layers=c2p_layers, p2p_layers=p2p_layers)
        parts = [tuple(of_image[n] for n in seen) for of_image in pixels]
        for n, (capture, _) in zip(seen, captures(model, parts, labels, wide), strict=True):
            here = [(number, s) for number, s in group if base.scales[n] in s.scales]
            maps[n] |= _refined(capture, here, base, len(pixels), depth)
    host, arrive = zip(*(to_host(found) for found in maps), strict=True)
    return BatchMaps(tuple(labels), list(host), list(arrive))


def _refined(
    capture: Capture,
    settings: Sequence[tuple[int, Setting]],
    base: CamOptions,
    images: int,
    depth: int,
) -> dict[str, Tensor]:
    """Number of each setting -> [n, K, h, w]."""
    refinement = _Refinement(capture, base, depth)
    grid = (capture.cam.shape[-2], capture.cam.shape[-1])
    found: dict[str, Tensor] = {}
    for propagation in dict.fromkeys(setting.propagation for _, setting in settings):
        group = [(n, setting) for n, setting in settings if setting.propagation == propagation]
        starts = torch.cat([refinement.start(setting) for _, setting in group], 1)
        if propagation:
            starts = kernels.propagate(starts, capture.p2p, propagation)
        for (number, _), one in zip(group, starts.chunk(len(group), 1), strict=True):
            found[str(number)] = sum_flips(one, images, grid)
    return found


class _Refinement:
    """What is propagated, or final where nothing is; what several settings need is made once."""

    def __init__(self, capture: Capture, base: CamOptions, depth: int) -> None:
        self.capture, self.base, self.depth = capture, base, depth
        self.cam = capture.cam.flatten(2)
        self.means: dict[tuple[str, float, int], Tensor] = {}
        self.similarities: dict[str, Tensor] = {}

    def start(self, setting: Setting) -> Tensor:
        """[B, K, N]."""
        if setting.c2p_layers is None:
            return torch.relu(self.cam)
        layers = min(setting.c2p_layers, self.depth)
        c2p = self.capture.c2p_by_layer[-layers:].mean(0)
        if setting.related_by is None:
            return reference.couple(self.cam, c2p, self.base.fuse)
        assert setting.ratio and setting.alpha is not None
        means = self._mean(setting.related_by, setting.ratio, layers, c2p)
        modulated = reference.modulate(c2p, means, setting.alpha)
        return reference.couple(self.cam, modulated, self.base.fuse)

    def _mean(self, rank: str, ratio: float, layers: int, c2p: Tensor) -> Tensor:
        key = (rank, ratio, layers)
        if key not in self.means:
            if rank not in self.similarities:
                self.similarities[rank] = self.capture.similarity(rank)
            self.means[key] = kernels.related_mean(
                c2p, self.similarities[rank], ratio, include_self=self.base.include_self
            )
        return self.means[key]
