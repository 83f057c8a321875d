"""Every hot operation of the method; `reference` defines what each must compute."""

from wsssfast.kernels.api import (
    STAGES,
    Backend,
    Propagation,
    attention_capture,
    full_size_cam,
    refine,
    related_patches,
)

__all__ = [
    "STAGES",
    "Backend",
    "Propagation",
    "attention_capture",
    "full_size_cam",
    "refine",
    "related_patches",
]
