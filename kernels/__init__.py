"""Every hot operation of the method; `reference` defines what each must compute."""

from wsssfast.kernels.api import (
    STAGES,
    Backend,
    Propagation,
    attention_capture,
    refine,
    related_patches,
)
from wsssfast.kernels.reference import fuse_scales, normalise

__all__ = [
    "STAGES",
    "Backend",
    "Propagation",
    "attention_capture",
    "fuse_scales",
    "normalise",
    "refine",
    "related_patches",
]
