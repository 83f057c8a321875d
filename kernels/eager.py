"""The batched PyTorch path: the same operations as `reference`, in fewer bytes and passes.

Any device, any floating dtype; probabilities and sums are held in float32 at least.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wsssfast.kernels import reference

ROW_BLOCK = 256  # query rows a step
_STEPS = {  # stage -> what it starts from, and whether p2p propagates it
    "original": ("original", False),
    "original+p2p": ("original", True),
    "original+c2p": ("c2p", False),
    "original+c2p+p2p": ("c2p", True),
    "modulated": ("modulated", False),
    "final": ("modulated", True),
}
STEP_ELEMENTS = 1 << 20  # small images share a step, up to 4 MB of probabilities


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    c2p_total: Tensor | None,
    p2p_total: Tensor | None,
    num_classes: int,
) -> Tensor:
    """Attention output; adds the head mean's two blocks to the running totals, in place.

    One block of query rows at a time: softmax once, multiply into the values, add to the mean,
    drop. No [M, T, T] tensor exists.

    Args:
        query: [B, M, T, d].
        key: [B, M, T, d].
        value: [B, M, T, d].
        scale: factor on the scores.
        c2p_total: [B, C, N] to add to, or None.
        p2p_total: [B, N, N] to add to, or None.
        num_classes: C.

    Returns:
        [B, M, T, d] in the dtype of `value`.
    """
    batch, heads, tokens, _ = query.shape
    work = torch.promote_types(query.dtype, torch.float32)
    output = torch.empty_like(value)
    rows = min(tokens, ROW_BLOCK)
    images = max(1, STEP_ELEMENTS // (heads * rows * tokens))
    for first in range(0, batch, images):
        some = slice(first, first + images)
        scaled, transposed = query[some] * scale, key[some].transpose(-2, -1)
        for start in range(0, tokens, rows):
            block = slice(start, min(start + rows, tokens))
            weights = torch.softmax(scaled[:, :, block] @ transposed, dim=-1, dtype=work)
            output[some, :, block] = weights.to(value.dtype) @ value[some]
            mean = weights.mean(1)[:, :, num_classes:]  # [images, rows, N]
            classes = max(0, min(num_classes - start, mean.shape[1]))  # of these rows
            if c2p_total is not None and classes:
                c2p_total[some, start : start + classes] += mean[:, :classes]
            if p2p_total is not None and classes < mean.shape[1]:
                patches = slice(start + classes - num_classes, block.stop - num_classes)
                p2p_total[some, patches] += mean[:, classes:]
    return output


def related_patches(similarity: Tensor, count: int, include_self: bool = True) -> Tensor:
    """U(i) of Eq. 3 without a sort: the k-th largest value, then a cut through its ties.

    Selects exactly what `reference.related_patches` selects.
    """
    n = similarity.shape[-1]
    if not include_self:
        similarity = similarity.clone()
        similarity.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)
        count = min(count, n - 1)
    if count == 0:
        return torch.zeros_like(similarity, dtype=torch.bool)
    threshold = torch.topk(similarity, count, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    chosen = similarity >= threshold
    if int(chosen.sum(-1).amax()) == count:  # no row has a tie across the cut
        return chosen
    above = similarity > threshold
    tied = chosen & ~above
    room = count - above.sum(-1, keepdim=True)
    return above | (tied & (tied.cumsum(-1) <= room))


def stage_maps(
    cam: Tensor,
    c2p: Tensor,
    p2p: Tensor,
    stages: Sequence[str],
    *,
    similarity: Tensor | None,
    ratio: float,
    alpha: float,
    include_self: bool,
    propagation: str,
) -> dict[str, Tensor]:
    """`reference.stage_maps`, computing only what the stages need, and nothing twice."""
    original = torch.relu(cam)
    starts = {"original": original}
    kinds = {_STEPS[stage][0] for stage in stages}
    if "c2p" in kinds:
        starts["c2p"] = original * c2p
    if "modulated" in kinds:
        rank = p2p if similarity is None else similarity
        count = reference.related_count(ratio, p2p.shape[-1])
        means = reference.related_mean(c2p, related_patches(rank, count, include_self))
        starts["modulated"] = original * reference.modulate(c2p, means, alpha)
    maps = {}
    for stage in stages:
        kind, propagated = _STEPS[stage]
        start = starts[kind]
        maps[stage] = reference.propagate(start, p2p, propagation) if propagated else start
    return maps


def full_size_cam(grids: Sequence[Tensor], size: tuple[int, int], epsilon: float) -> Tensor:
    """`reference.normalise(reference.fuse_scales(grids, size), epsilon)` in place, fewer passes."""
    total = F.interpolate(grids[0][None], size, mode="bilinear", align_corners=False)[0]
    for grid in grids[1:]:
        total += F.interpolate(grid[None], size, mode="bilinear", align_corners=False)[0]
    low, high = total.flatten(1).aminmax(dim=-1)
    low, high = low[:, None, None], high[:, None, None]
    return total.sub_(low).div_(high - low + epsilon)
