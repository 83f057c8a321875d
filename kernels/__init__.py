"""Every hot operation of the method; `reference` defines what each must compute."""

from wsssfast.kernels.api import (
    PROPAGATIONS,
    STAGES,
    Fuse,
    Propagation,
    full_size_cam,
    propagate,
    refine,
    related_mean,
    related_patches,
)
from wsssfast.kernels.backend import Backend
from wsssfast.kernels.capture import AttentionCapture, head_mean
from wsssfast.kernels.crf import CrfBackend, Pairwise, choose_crf, dense_crf
from wsssfast.kernels.reference import token_similarity

__all__ = [
    "PROPAGATIONS",
    "STAGES",
    "AttentionCapture",
    "Backend",
    "CrfBackend",
    "Fuse",
    "Pairwise",
    "Propagation",
    "choose_crf",
    "dense_crf",
    "full_size_cam",
    "head_mean",
    "propagate",
    "refine",
    "related_mean",
    "related_patches",
    "token_similarity",
]
