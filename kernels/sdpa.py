"""Attention output with the log-sum-exp of every row, from PyTorch's own kernels.

PyTorch computes it in every forward and keeps it for the backward, behind private operators whose
signatures differ over versions: all of that is here. Where none serves, `flash` does.
"""

import warnings
from functools import cache

import torch
from torch import Tensor

_FLASH, _CUDNN = 1, 3  # of torch._fused_sdp_choice


def attend_with_lse(
    query: Tensor, key: Tensor, value: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention, by the kernel that F.scaled_dot_product_attention would take.

    Args:
        query: [B, M, T, d].
        key: like `query`.
        value: like `query`.
        scale: factor on the scores.

    Returns:
        [B, M, T, d] laid out as [B, T, M, d], and float32 [B, M, T]: log(sum(exp(scale * q . k)))
        of every row.
    """
    aten = torch.ops.aten
    if not query.is_cuda:
        output, lse = aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, scale=scale
        )[:2]
        return _laid_out(output, lse.float())
    try:
        chosen = torch._fused_sdp_choice(query, key, value, scale=scale)
        if chosen == _FLASH:
            found = aten._scaled_dot_product_flash_attention(query, key, value, scale=scale)
        elif chosen == _CUDNN:
            found = aten._scaled_dot_product_cudnn_attention(
                query, key, value, None, True, scale=scale
            )
        else:
            found = aten._scaled_dot_product_efficient_attention(
                query, key, value, None, True, scale=scale
            )
    except (AttributeError, RuntimeError, TypeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        _tell(str(error).partition("\n")[0])
        from wsssfast.kernels.flash import flash

        return flash(query, key, value, scale)
    output, lse = found[:2]  # the log-sum-exp may be padded, or have a last dimension of 1
    return _laid_out(output, lse.reshape(*lse.shape[:2], -1)[..., : query.shape[2]])


def _laid_out(output: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """The layout that compilers are promised; a copy only where a kernel has another."""
    return output.transpose(1, 2).contiguous().transpose(1, 2), lse.contiguous()


@cache
def _tell(reason: str) -> None:
    warnings.warn(
        f"PyTorch's attention gave no log-sum-exp ({reason}); a slower kernel takes its place.",
        RuntimeWarning,
        stacklevel=2,
    )
