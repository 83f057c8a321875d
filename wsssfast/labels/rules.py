"""From the CAM of an image to its pseudo-label: background, walk, CRF, decision (method §6)."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsssfast.data.dataset import IGNORE, Mask
from wsssfast.errors import BadFile, WsssError
from wsssfast.kernels import CrfBackend, Pairwise, dense_crf
from wsssfast.labels.options import LabelOptions
from wsssfast.labels.walk import Affinity, by_cell, walked
from wsssfast.threshold import threshold

NOT_FINITE = "its CAM is not finite"
_LEAST = 1e-5  # score of a class that nothing speaks for ([M])


def class_scores(cam: Tensor, options: LabelOptions) -> Tensor:
    """Scores of background and classes.

    Args:
        cam: [K, H, W] in [0, 1].
        options: the background settings.

    Returns:
        float32 [G, 1 + K, H, W], the settings with the most background first.
    """
    if options.background:
        least_first = [torch.full_like(cam[:1], score) for score in options.background]
        backgrounds = least_first[::-1]
    else:
        rest = 1 - cam.amax(0, keepdim=True)
        backgrounds = [rest**exponent for exponent in options.background_exponent]
    return torch.stack([torch.cat([background, cam]) for background in backgrounds])


def energies(scores: Tensor, certainty: float | None = None) -> Tensor:
    """Unary energies of scores [..., 1 + K, H, W] that need not sum to one ([M]).

    Args:
        scores: in [0, 1].
        certainty: the energies of labels instead, each the largest score's (pydensecrf's
            `unary_from_labels`, which IRN uses).
    """
    if certainty is None:
        return -scores.clamp(_LEAST, 1).log()
    classes = scores.shape[-3]
    chosen = scores.argmax(-3, keepdim=True)
    others = torch.full_like(scores, (1 - certainty) / max(1, classes - 1))
    return -others.scatter_(-3, chosen, certainty).log()


def refined(
    images: Sequence[Tensor], unaries: Sequence[Tensor], crf: Pairwise, backend: CrfBackend
) -> list[Tensor]:
    """Marginals of images, as `dense_crf` gives them.

    Raises:
        WsssError: constants that its lattice cannot hold.
    """
    try:
        return dense_crf(images, unaries, crf, backend=backend)
    except ValueError as error:
        raise WsssError(f"The CRF cannot run: {error}.") from error


def decide(scores: Tensor, labels: Sequence[int], options: LabelOptions) -> Mask:
    """The mask of scores or marginals [G, 1 + K, H, W]; ties go to the background.

    Args:
        scores: of one background setting, or of two, that with more background first.
        labels: the K classes, 0-based.
        options: whose settings these are.

    Returns:
        uint8 [H, W]: 0 background, class + 1, 255 where two settings do not agree.
    """
    values = np.array([0, *(label + 1 for label in labels)], np.uint8)
    mask: Mask = values[scores[0].argmax(0).cpu().numpy()]
    if len(scores) > 1:
        background = (scores[-1].argmax(0) == 0).cpu().numpy()
        unsure = mask == 0
        mask[unsure] = IGNORE
        mask[background & unsure if options.background else background] = 0
    return mask


def pseudo_labels(
    cams: Sequence[Tensor],
    labels: Sequence[Sequence[int]],
    images: Sequence[NDArray[np.uint8] | None],
    options: LabelOptions,
    affinities: Sequence[Affinity | None] | None = None,
    *,
    backend: CrfBackend = "auto",
) -> list[Mask]:
    """Masks of images of any sizes.

    Args:
        cams: float32 [K, H, W] in [0, 1] each, of the image's K classes, on the device that is to
            compute; K may be 0.
        labels: the 0-based classes of each, sorted.
        images: uint8 RGB [H, W, 3] each; only a CRF looks at them.
        options: how.
        affinities: of each image, where the options let scores walk.
        backend: of the CRF.

    Returns:
        uint8 [H, W] each, or of its cells: 0 background, class + 1, 255 ignore.

    Raises:
        BadFile: a CAM that is not finite.
    """
    if not all(cam.isfinite().all() for cam in cams):
        raise BadFile(NOT_FINITE)
    sizes = [tuple(-(-side // options.cell) for side in cam.shape[1:]) for cam in cams]
    masks = [np.zeros(size, np.uint8) for size in sizes]
    some = [n for n, of_image in enumerate(labels) if len(of_image)]
    if options.refine == "none" and options.background and options.cell == 1:
        for n in some:
            known = np.asarray(labels[n], np.int64)
            masks[n] = threshold(known, cams[n].cpu().numpy(), options.background)
        return masks
    scores = []
    for n in some:
        if options.walk:
            affinity = affinities[n] if affinities else None
            assert affinity is not None, "scores that walk need an affinity"
            scores.append(walked(cams[n], affinity, options, class_scores))
        else:
            scores.append(class_scores(cams[n], options))
    if options.crfs and some:
        pixels = [torch.from_numpy(np.array(images[n])).to(cams[n].device) for n in some]
        unaries = [energies(one, options.certainty) for one in scores]
        scores = refined(pixels, unaries, options.crf, backend)
    for n, one in zip(some, scores, strict=True):
        masks[n] = decide(by_cell(one, options.cell), labels[n], options)
    return masks
