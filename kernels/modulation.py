"""Eqs. 3-5 in one kernel: mean over the related patches, modulation, product with the CAM.

    r[c, i] = 1/k * sum over j in U(i) of c2p[c, j]
    out[c, i] = relu(cam[c, i]) * (c2p[c, i] + alpha * r[c, i])

U(i) comes as threshold and cut of each row (`select`); its 0/1 mask is rebuilt tile by tile and
multiplied into c2p on the tensor cores. The mask is exact in TF32; c2p goes in as two TF32 parts,
which keeps 21 of its 24 bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from wsssfast.kernels import launch
from wsssfast.kernels.bits import ordered_bits


@triton.jit
def modulate_kernel(
    similarity_ptr,  # float32 [B, N, N]
    threshold_ptr,  # int32 [B, N]
    cut_ptr,  # int32 [B, N]
    c2p_ptr,  # float32 [B, C, N]
    cam_ptr,  # float32 [B, C, N]
    out_ptr,  # float32 [B, C, N]
    patches,
    classes,
    weight,  # alpha / k
    similarity_batch_stride,
    similarity_row_stride,
    c2p_batch_stride,
    c2p_row_stride,
    cam_batch_stride,
    cam_row_stride,
    INCLUDE_SELF: tl.constexpr,
    COUPLE: tl.constexpr,  # relu(cam) * (c2p + alpha * r), or alpha * r alone
    ROWS: tl.constexpr,  # patches i of a program
    COLUMNS: tl.constexpr,  # patches j of a step
    CLASSES: tl.constexpr,  # classes of a program
):
    """One tile of patches i and classes c."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    label = tl.program_id(1) * CLASSES + tl.arange(0, CLASSES)
    image = tl.program_id(2).to(tl.int64)
    row_valid, label_valid = row < patches, label < classes
    threshold = tl.load(threshold_ptr + image * patches + row, mask=row_valid, other=0)
    cut = tl.load(cut_ptr + image * patches + row, mask=row_valid, other=0)
    similarity_rows = (
        similarity_ptr
        + image * similarity_batch_stride
        + row[:, None].to(tl.int64) * similarity_row_stride
    )
    c2p_start = c2p_ptr + image * c2p_batch_stride
    total = tl.zeros((ROWS, CLASSES), tl.float32)
    for start in range(0, patches, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        valid = row_valid[:, None] & (column < patches)[None, :]
        bits = ordered_bits(tl.load(similarity_rows + column[None, :], mask=valid, other=0.0))
        related = (bits > threshold[:, None]) | (
            (bits == threshold[:, None]) & (column[None, :] < cut[:, None])
        )
        if not INCLUDE_SELF:
            related = related & (column[None, :] != row[:, None])
        mask = (related & valid).to(tl.float32)
        attention = tl.load(
            c2p_start + label[None, :] * c2p_row_stride + column[:, None],
            mask=label_valid[None, :] & (column < patches)[:, None],
            other=0.0,
        )  # [COLUMNS, CLASSES]
        bits_kept = attention.to(tl.int32, bitcast=True) & -8192  # what TF32 keeps
        coarse = bits_kept.to(tl.float32, bitcast=True)
        total = tl.dot(mask, coarse, total, input_precision="tf32")
        total = tl.dot(mask, attention - coarse, total, input_precision="tf32")
    inside = row_valid[:, None] & label_valid[None, :]
    place = label[None, :] * c2p_row_stride + row[:, None]
    result = weight * total
    if COUPLE:
        result += tl.load(c2p_start + place, mask=inside, other=0.0)
        place = image * cam_batch_stride + label[None, :] * cam_row_stride + row[:, None]
        result *= tl.maximum(tl.load(cam_ptr + place, mask=inside, other=0.0), 0.0)
    place = (image * classes + label[None, :]) * patches + row[:, None]
    tl.store(out_ptr + place, result, mask=inside)


def modulate(
    cam: Tensor | None,
    c2p: Tensor,
    similarity: Tensor,
    threshold: Tensor,
    cut: Tensor,
    count: int,
    alpha: float,
    include_self: bool = True,
) -> Tensor:
    """relu(cam) * (c2p + alpha * r), or without a cam alpha * r.

    Args:
        cam: float32 [B, C, N] or None.
        c2p: float32 [B, C, N].
        similarity: float32 [B, N, N], what `threshold` and `cut` were selected from.
        threshold: int32 [B, N], from `select`.
        cut: int32 [B, N], from `select`.
        count: k that they were selected with.
        alpha: weight of the related mean.
        include_self: as in `select`.

    Returns:
        float32 [B, C, N]. All inputs have a contiguous last dimension.
    """
    batch, classes, patches = c2p.shape
    out = torch.empty(batch, classes, patches, dtype=torch.float32, device=c2p.device)
    other = c2p if cam is None else cam
    grid, chosen = launch.tiles("modulate", c2p, (batch, classes, patches))
    with torch.cuda.device_of(c2p):
        modulate_kernel[grid](
            similarity,
            threshold,
            cut,
            c2p,
            other,
            out,
            patches,
            classes,
            alpha / count,
            similarity.stride(0),
            similarity.stride(1),
            c2p.stride(0),
            c2p.stride(1),
            other.stride(0),
            other.stride(1),
            INCLUDE_SELF=include_self,
            COUPLE=cam is not None,
            **chosen,
        )
    return out
