"""Autocast by the names that options have."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16", "fp16"]


def autocast(device: "str | torch.device", precision: Precision) -> "torch.autocast":
    """The context of a forward pass; none for fp32.

    Args:
        device: where it runs.
        precision: fp32, bf16 or fp16.
    """
    import torch  # not before: options name precisions, and help must be instant

    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    kind = torch.device(device).type
    return torch.autocast(kind, dtype or torch.bfloat16, enabled=dtype is not None)
