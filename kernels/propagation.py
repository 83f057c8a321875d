"""Eq. 6 in Triton, in either reading: maps multiplied with patch-to-patch attention.

    gather:    out[c, i] = sum over j of p2p[i, j] * cam[c, j]
    scatter:   out[c, i] = sum over j of cam[c, j] * p2p[j, i]
    geometric: out[c, i] = sum over j of sqrt(p2p[i, j] * p2p[j, i]) * cam[c, j]

One kernel: scatter is gather with the two strides of p2p exchanged, geometric reads both tiles.
Products are TF32 in three passes, as exact as float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from wsssfast.kernels import launch


@triton.jit
def propagate_kernel(
    cam_ptr,  # float32 [B, C, N]
    p2p_ptr,  # float32 [B, N, N]
    out_ptr,  # float32 [B, C, N]
    patches,
    classes,
    cam_batch_stride,
    cam_row_stride,
    p2p_batch_stride,
    to_stride,  # from a patch i that receives to the next
    from_stride,  # from a patch j that gives to the next
    CLASSES: tl.constexpr,  # classes of a program
    ROWS: tl.constexpr,  # patches i of a program
    COLUMNS: tl.constexpr,  # patches j of a step
    BOTH: tl.constexpr,  # whether weights are the geometric mean of both ways
):
    """One tile of classes c and receiving patches i."""
    to = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    label = tl.program_id(1) * CLASSES + tl.arange(0, CLASSES)
    image = tl.program_id(2).to(tl.int64)
    to_valid, label_valid = to < patches, label < classes
    cam_rows = cam_ptr + image * cam_batch_stride + label[:, None] * cam_row_stride
    p2p_columns = p2p_ptr + image * p2p_batch_stride + to[None, :].to(tl.int64) * to_stride
    total = tl.zeros((CLASSES, ROWS), tl.float32)
    for start in range(0, patches, COLUMNS):
        giver = start + tl.arange(0, COLUMNS)
        valid = giver < patches
        maps = tl.load(
            cam_rows + giver[None, :], mask=label_valid[:, None] & valid[None, :], other=0.0
        )
        attention = tl.load(
            p2p_columns + giver[:, None].to(tl.int64) * from_stride,
            mask=valid[:, None] & to_valid[None, :],
            other=0.0,
        )
        if BOTH:
            place = giver[:, None].to(tl.int64) * to_stride + to[None, :] * from_stride
            answer = tl.load(
                p2p_ptr + image * p2p_batch_stride + place,
                mask=valid[:, None] & to_valid[None, :],
                other=0.0,
            )
            attention = tl.sqrt(attention * answer)
        total = tl.dot(maps, attention, total, input_precision="tf32x3")
    place = (image * classes + label[:, None]) * patches + to[None, :]
    tl.store(out_ptr + place, total, mask=label_valid[:, None] & to_valid[None, :])


def propagate(cam: Tensor, p2p: Tensor, propagation: str = "gather") -> Tensor:
    """Maps propagated once.

    Args:
        cam: float32 [B, C, N], last dimension contiguous.
        p2p: float32 [B, N, N], last dimension contiguous.
        propagation: gather, scatter or geometric.

    Returns:
        float32 [B, C, N].
    """
    batch, classes, patches = cam.shape
    out = torch.empty(batch, classes, patches, dtype=torch.float32, device=cam.device)
    row, column = p2p.stride(1), p2p.stride(2)
    to_stride, from_stride = (column, row) if propagation == "scatter" else (row, column)
    grid, chosen = launch.tiles("propagate", cam, (batch, classes, patches))
    with torch.cuda.device_of(cam):
        propagate_kernel[grid](
            cam,
            p2p,
            out,
            patches,
            classes,
            cam.stride(0),
            cam.stride(1),
            p2p.stride(0),
            to_stride,
            from_stride,
            BOTH=propagation == "geometric",
            **chosen,
        )
    return out
