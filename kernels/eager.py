"""The batched PyTorch path: the same operations as `reference`, in fewer bytes and passes.

Any device, any floating dtype; probabilities and sums are held in float32 at least. It is what runs
on CPUs, and it needs no compiler: every step is a library call on a block that fits the cache.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ROW_BLOCK = 128  # query rows a step of large images
WHOLE = 320  # tokens up to which all rows make one step
RANK_BLOCK = 256  # rows that are ranked at once


def attend_and_add(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    classes: int,
    share: float,
    total: Tensor | None,
    c2p: Tensor | None,
    weights: Tensor | None = None,
    block: Tensor | None = None,
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
        weights: [M] factors on the heads in both means; ones where None.
        block: where attention is computed, from `attention_block`; made anew where None.

    Returns:
        [B, M, T, d] in the dtype of `value`, laid out as [B, T, M, d].
    """
    batch, heads, tokens, width = query.shape
    output = value.new_empty(batch, tokens, heads, width)
    whole = tokens <= WHOLE
    rows = tokens if whole else ROW_BLOCK
    block = attention_block(query) if block is None else block
    work = block.dtype
    row = block.new_full((1, heads), share / heads)
    if weights is not None:
        row *= weights
    if query.dtype != work:
        query, key, value = query.to(work), key.to(work), value.to(work)
    for image in range(batch):
        queries, values = query[image], value[image]
        transposed = key[image].transpose(-2, -1)
        if not whole:
            transposed = transposed.contiguous()  # every block reads it
        for start in range(0, tokens, rows):
            stop = min(start + rows, tokens)
            size = heads * (stop - start) * tokens
            attention = block[:size].view(heads, stop - start, tokens)
            attention.baddbmm_(queries[:, start:stop], transposed, beta=0, alpha=scale)
            torch.softmax(attention, -1, out=attention)
            wanted = output[image, start:stop].transpose(0, 1)
            if whole and wanted.dtype == work:
                torch.bmm(attention, values, out=wanted)
            else:
                wanted.copy_(torch.bmm(attention, values))
            if total is not None:
                sums = total[image, start:stop].view(1, -1)
                torch.addmm(sums, row, attention.view(heads, -1), out=sums)
            if c2p is not None and start < classes:
                part = attention[:, : classes - start, classes:]
                mean = (part if weights is None else part * weights[:, None, None]).mean(0)
                c2p[image, start : start + len(mean)] = mean
    return output.transpose(1, 2)


def attention_block(query: Tensor) -> Tensor:
    """Room for the attention of one block of rows of [B, M, T, d]; all layers can share it."""
    _, heads, tokens, _ = query.shape
    work = torch.promote_types(query.dtype, torch.float32)
    rows = tokens if tokens <= WHOLE else ROW_BLOCK
    return query.new_empty(heads * rows * tokens, dtype=work)


def head_mean(probabilities: Sequence[Tensor], classes: int) -> tuple[Tensor, Tensor]:
    """Class-to-patch block of each layer's head mean [L, B, C, N], and the layers' mean of p2p.

    Args:
        probabilities: per layer [B, M, T, T].
        classes: C.
    """
    work = torch.promote_types(probabilities[0].dtype, torch.float32)
    c2p = torch.stack([p[:, :, :classes, classes:].mean(1, dtype=work) for p in probabilities])
    p2p = probabilities[0][:, :, classes:, classes:].mean(1, dtype=work)
    for layer in probabilities[1:]:
        p2p += layer[:, :, classes:, classes:].mean(1, dtype=work)
    return c2p, p2p.div_(len(probabilities))


def related_patches(similarity: Tensor, count: int, include_self: bool = True) -> Tensor:
    """U(i) of Eq. 3 without a sort: the k-th largest value, then a cut through its ties.

    Selects exactly what `reference.related_patches` selects.

    Args:
        similarity: [B, R, N], the first R <= N rows.
        count: k.
        include_self: whether the diagonal takes part.
    """
    if not include_self:
        batch, rows, n = similarity.shape
        others = ~torch.eye(rows, n, dtype=torch.bool, device=similarity.device)
        others = others.expand(batch, rows, n)
        related = torch.zeros_like(others)
        rest = similarity[others].reshape(batch, rows, n - 1)
        related[others] = related_patches(rest, min(count, n - 1)).flatten()
        return related
    if count == 0:
        return torch.zeros_like(similarity, dtype=torch.bool)
    threshold = _kth_largest(similarity, count)
    above = similarity > threshold
    tied = similarity == threshold
    room = count - above.sum(-1, keepdim=True)
    return above | (tied & (tied.cumsum(-1) <= room))


def related_mean(c2p: Tensor, similarity: Tensor, count: int, include_self: bool = True) -> Tensor:
    """Eq. 3: r, float32 or float64 [B, C, N].

    One block of rows at a time: threshold, 0/1 mask, product with c2p. A row of ones below c2p
    counts what each mask holds, which shows rows whose ties cross the cut; those blocks are cut
    exactly.
    """
    c2p = _wide(c2p)
    batch, classes, n = c2p.shape
    if not include_self:
        related = related_patches(similarity, count, include_self=False).to(c2p.dtype)
        return (c2p @ related.transpose(-2, -1)).div_(max(1, min(count, n - 1)))
    counted = torch.cat([c2p, c2p.new_ones(batch, 1, n)], 1)
    means = c2p.new_empty(batch, classes, n)
    for start in range(0, n, RANK_BLOCK):
        rows = similarity[:, start : start + RANK_BLOCK]
        mask = rows.new_empty(rows.shape, dtype=c2p.dtype)
        torch.ge(rows, _kth_largest(rows, count), out=mask)
        sums = counted @ mask.transpose(-2, -1)
        if bool((sums[:, -1] != count).any()):
            sums = counted @ related_patches(rows, count).to(c2p.dtype).transpose(-2, -1)
        torch.div(sums[:, :-1], count, out=means[:, :, start : start + RANK_BLOCK])
    return means


def _kth_largest(rows: Tensor, count: int) -> Tensor:
    """The `count`-th largest value of each row, [B, R, 1]; on CPU by numpy's faster selection."""
    if rows.is_cuda:
        return torch.topk(rows, count, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    place = rows.shape[-1] - count
    selected = np.partition(_wide(rows).numpy(), place, axis=-1)[..., place : place + 1]
    return torch.from_numpy(np.ascontiguousarray(selected)).to(rows.dtype)


def _wide(values: Tensor) -> Tensor:
    """As float32 at least: numpy knows no bfloat16, and sums in half precision are too coarse."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


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


def propagate(cam: Tensor, p2p: Tensor, propagation: str = "gather") -> Tensor:
    """Eq. 6 as `reference.propagate`, [B, C, N]; geometric weights of one image at a time."""
    if propagation != "geometric":
        return cam @ (p2p.transpose(-2, -1) if propagation == "gather" else p2p)
    images = zip(cam, p2p, strict=True)
    return torch.stack([maps @ (weights * weights.t()).sqrt() for maps, weights in images])


def full_size_cam(grids: Sequence[Tensor], size: tuple[int, int], epsilon: float) -> Tensor:
    """`reference.normalise(reference.fuse_scales(grids, size), epsilon)` in place, fewer passes."""
    total = F.interpolate(grids[0][None], size, mode="bilinear", align_corners=False)[0]
    for grid in grids[1:]:
        total += F.interpolate(grid[None], size, mode="bilinear", align_corners=False)[0]
    low, high = total.flatten(1).aminmax(dim=-1)
    low, high = low[:, None, None], high[:, None, None]
    return total.sub_(low).div_(high - low + epsilon)
