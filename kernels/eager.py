"""The batched PyTorch path: the same operations as `reference`, in fewer bytes and passes.

Any device, any floating dtype; probabilities and sums are held in float32 at least. It is what runs
on CPUs, and it needs no compiler: every step is a library call on a block that fits the cache.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ROW_BLOCK = 128  # query rows a step of large images
WHOLE = 320  # tokens up to which all rows make one step


def attend_and_add(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    classes: int,
    share: float,
    total: Tensor | None,
    c2p: Tensor | None,
) -> Tensor:
    """Attention output; its head mean is added to running sums, in place.

    One block of query rows of one image at a time: softmax in place, multiply into the values, add
    the head mean as a matrix product with a row of weights, reuse the block. No [M, T, T] tensor
    exists.

    Args:
        query: [B, M, T, d].
        key: [B, M, T, d].
        value: [B, M, T, d].
        scale: factor on the scores.
        classes: C.
        share: factor on what is added to `total`, such as 1 / layers.
        total: [B, T, T] to add the head mean to, or None.
        c2p: [B, C, N] to write the head mean's class-to-patch block to, or None.

    Returns:
        [B, M, T, d] in the dtype of `value`, laid out as [B, T, M, d].
    """
    batch, heads, tokens, width = query.shape
    work = torch.promote_types(query.dtype, torch.float32)
    output = value.new_empty(batch, tokens, heads, width)
    rows = tokens if tokens <= WHOLE else ROW_BLOCK
    block = query.new_empty(heads * min(rows, tokens) * tokens, dtype=work)
    weights = block.new_full((1, heads), share / heads)
    for image in range(batch):
        scaled = (query[image] * scale).to(work)
        transposed = key[image].transpose(-2, -1).to(work).contiguous()
        values = value[image].to(work).contiguous()
        for start in range(0, tokens, rows):
            stop = min(start + rows, tokens)
            size = heads * (stop - start) * tokens
            attention = block[:size].view(heads, stop - start, tokens)
            torch.bmm(scaled[:, start:stop], transposed, out=attention)
            torch.softmax(attention, -1, out=attention)
            output[image, start:stop] = torch.bmm(attention, values).transpose(0, 1)
            if total is not None:
                sums = total[image, start:stop].view(1, -1)
                torch.addmm(sums, weights, attention.view(heads, -1), out=sums)
            if c2p is not None and start < classes:
                mean = attention[:, : classes - start, classes:].mean(0)
                c2p[image, start : start + len(mean)] = mean
    return output.transpose(1, 2)


def head_mean(probabilities: Sequence[Tensor], classes: int) -> tuple[Tensor, Tensor]:
    """Class-to-patch block of each layer's head mean [L, B, C, N], and the layers' mean of p2p.

    Args:
        probabilities: per layer [B, M, T, T].
        classes: C.
    """
    c2p = torch.stack([layer[:, :, :classes, classes:].mean(1) for layer in probabilities])
    p2p = probabilities[0][:, :, classes:, classes:].mean(1)
    for layer in probabilities[1:]:
        p2p += layer[:, :, classes:, classes:].mean(1)
    return c2p, p2p.div_(len(probabilities))


def related_patches(similarity: Tensor, count: int, include_self: bool = True) -> Tensor:
    """U(i) of Eq. 3 without a sort: the k-th largest value, then a cut through its ties.

    Selects exactly what `reference.related_patches` selects.
    """
    if not include_self:
        batch, n, _ = similarity.shape
        others = ~torch.eye(n, dtype=torch.bool, device=similarity.device).expand(batch, n, n)
        related = torch.zeros_like(others)
        rest = similarity[others].reshape(batch, n, n - 1)
        related[others] = related_patches(rest, min(count, n - 1)).flatten()
        return related
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


def related_mean(c2p: Tensor, similarity: Tensor, count: int, include_self: bool = True) -> Tensor:
    """R of Eq. 3, [B, C, N]."""
    related = related_patches(similarity, count, include_self).to(c2p.dtype)
    chosen = count if include_self else min(count, c2p.shape[-1] - 1)
    return (c2p @ related.transpose(-2, -1)).div_(max(1, chosen))


def modulated_cam(
    cam: Tensor,
    c2p: Tensor,
    similarity: Tensor,
    count: int,
    alpha: float,
    include_self: bool = True,
) -> Tensor:
    """Eqs. 3-5: relu(cam) * (c2p + alpha * r), [B, C, N]."""
    modulated = related_mean(c2p, similarity, count, include_self).mul_(alpha).add_(c2p)
    return modulated.mul_(torch.relu(cam))


def propagate(cam: Tensor, p2p: Tensor, gather: bool = True) -> Tensor:
    """Eq. 6, [B, C, N]: sum over j of p2p[i, j] * cam[c, j], or of cam[c, j] * p2p[j, i]."""
    return cam @ (p2p.transpose(-2, -1) if gather else p2p)


def full_size_cam(grids: Sequence[Tensor], size: tuple[int, int], epsilon: float) -> Tensor:
    """`reference.normalise(reference.fuse_scales(grids, size), epsilon)` in place, fewer passes."""
    total = F.interpolate(grids[0][None], size, mode="bilinear", align_corners=False)[0]
    for grid in grids[1:]:
        total += F.interpolate(grid[None], size, mode="bilinear", align_corners=False)[0]
    low, high = total.flatten(1).aminmax(dim=-1)
    low, high = low[:, None, None], high[:, None, None]
    return total.sub_(low).div_(high - low + epsilon)
