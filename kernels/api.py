"""The public operations: check the arguments, choose an implementation, compute.

Each takes finite floats on one device, of any and of different dtypes; it computes and returns
float32, or float64 where one of them is. `backend="reference"` runs the equation-by-equation code
that defines correctness, and is differentiable; `backend="auto"` takes the fastest path that this
device has. The other paths are for inference and refuse tensors that require gradients.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from wsssfast.kernels import eager, operators, reference
from wsssfast.kernels.backend import Backend, choose

STAGES = (
    "original",
    "original+p2p",
    "original+c2p",
    "original+c2p+p2p",
    "modulated",
    "final",
)
_STEPS = {  # stage -> what it starts from, and whether p2p propagates it
    "original": ("original", False),
    "original+p2p": ("original", True),
    "original+c2p": ("c2p", False),
    "original+c2p+p2p": ("c2p", True),
    "modulated": ("modulated", False),
    "final": ("modulated", True),
}
Propagation = Literal["gather", "scatter", "geometric"]
PROPAGATIONS: tuple[Propagation, ...] = get_args(Propagation)
Fuse = Literal["product", "sqrt"]


def related_patches(
    similarity: Tensor,
    ratio: float = 0.3,
    *,
    include_self: bool = True,
    backend: Backend = "auto",
) -> Tensor:
    """U(i) of Eq. 3: per row the int(ratio * N), at least 1, largest; ties to the lowest index.

    Args:
        similarity: [B, N, N].
        ratio: share in (0, 1].
        include_self: whether the diagonal takes part.
        backend: see the module.

    Returns:
        bool [B, N, N].

    Raises:
        ValueError: not square, or a ratio outside (0, 1].
    """
    _wide(backend, similarity=similarity)
    if similarity.ndim != 3 or similarity.shape[1] != similarity.shape[2]:
        raise ValueError(f"expected similarity [B, N, N], received {list(similarity.shape)}")
    _expect_ratio(ratio)
    count = reference.related_count(ratio, similarity.shape[-1])
    chosen = choose(backend, similarity, patches=similarity.shape[-1])
    if chosen == "reference":
        return reference.related_patches(similarity, count, include_self)
    if chosen == "eager":
        return eager.related_patches(similarity, count, include_self)
    from wsssfast.kernels import fused

    return fused.related_patches(similarity, count, include_self)


def related_mean(
    c2p: Tensor,
    similarity: Tensor,
    ratio: float = 0.3,
    *,
    include_self: bool = True,
    backend: Backend = "auto",
) -> Tensor:
    """R of Eq. 3: the mean of c2p over each patch's related patches.

    Args:
        c2p: [B, C, N].
        similarity: [B, N, N], p2p or `token_similarity`.
        ratio: share in (0, 1].
        include_self: whether the diagonal takes part.
        backend: auto, triton, eager or reference.

    Returns:
        [B, C, N].

    Raises:
        ValueError: shapes that do not fit one another, or a ratio outside (0, 1].
    """
    c2p, similarity = _wide(backend, c2p=c2p, similarity=similarity)
    _expect("similarity", similarity, (c2p.shape[0], c2p.shape[-1], c2p.shape[-1]))
    _expect_ratio(ratio)
    count = reference.related_count(ratio, c2p.shape[-1])
    chosen = choose(backend, c2p, patches=c2p.shape[-1])
    if chosen == "reference":
        return reference.related_mean(
            c2p, reference.related_patches(similarity, count, include_self)
        )
    mean: Tensor = _operations(chosen, c2p).related_mean(c2p, similarity, count, include_self)
    return mean


def propagate(
    cam: Tensor, p2p: Tensor, propagation: Propagation = "gather", *, backend: Backend = "auto"
) -> Tensor:
    """Eq. 6: maps propagated by patch-to-patch attention.

    Args:
        cam: [B, C, N].
        p2p: [B, N, N].
        propagation: "gather" or "scatter" (Eq. 6 as MCTformer computes it, or to the letter), or
            "geometric" (by the geometric mean of both).
        backend: auto, triton, eager or reference.

    Returns:
        [B, C, N].

    Raises:
        ValueError: shapes that do not fit one another.
    """
    cam, p2p = _wide(backend, cam=cam, p2p=p2p)
    _expect("p2p", p2p, (cam.shape[0], cam.shape[-1], cam.shape[-1]))
    _expect_propagation(propagation)
    chosen = choose(backend, cam)
    if chosen == "reference":
        return reference.propagate(cam, p2p, propagation)
    moved: Tensor = _operations(chosen, cam).propagate(cam, p2p, propagation)
    return moved


def refine(
    cam: Tensor,
    c2p: Tensor,
    p2p: Tensor,
    stages: Sequence[str] = ("final",),
    *,
    tokens: Tensor | None = None,
    ratio: float = 0.3,
    alpha: float = 1.2,
    include_self: bool = True,
    propagation: Propagation = "gather",
    fuse: Fuse = "product",
    backend: Backend = "auto",
) -> dict[str, Tensor]:
    """Eqs. 3-6: the requested stages of the refinement from one capture of attention.

    Args:
        cam: [B, C, N] Original-CAM (any sign; relu is applied here).
        c2p: [B, C, N] class-to-patch attention, >= 0.
        p2p: [B, N, N] patch-to-patch attention, >= 0.
        stages: names out of `STAGES`.
        tokens: [B, N, D] output patch tokens: rank the related patches by their cosine
            similarity instead of p2p.
        ratio: share of related patches in (0, 1] (paper: 0.3).
        alpha: weight of the related mean, >= 0 (paper: 1.2; 0 is MCTformer-V2).
        include_self: whether a patch may be related to itself.
        propagation: "gather" or "scatter" (Eq. 6 as MCTformer computes it, or to the letter), or
            "geometric" (by the geometric mean of both).
        fuse: what joins CAM and c2p: their product (Eq. 5), or its root (MCTformer+).
        backend: see the module.

    Returns:
        stage -> [B, C, N], values >= 0, in the order asked for.

    Raises:
        ValueError: unknown names or shapes that do not fit one another.
    """
    others = {} if tokens is None else {"tokens": tokens}
    cam, c2p, p2p, *wide_tokens = _wide(backend, cam=cam, c2p=c2p, p2p=p2p, **others)
    if cam.ndim != 3 or cam.shape != c2p.shape:
        raise ValueError(
            f"expected cam and c2p of one shape [B, C, N], received {list(cam.shape)} and "
            f"{list(c2p.shape)}"
        )
    _expect("p2p", p2p, (cam.shape[0], cam.shape[2], cam.shape[2]))
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise ValueError(f"unknown stage {unknown[0]!r}; expected one of {', '.join(STAGES)}")
    _expect_propagation(propagation)
    if fuse not in ("product", "sqrt"):
        raise ValueError(f"expected fuse product or sqrt, received {fuse!r}")
    if not alpha >= 0:
        raise ValueError(f"expected alpha >= 0, received {alpha}")
    _expect_ratio(ratio)
    similarity = p2p
    for found in wide_tokens:
        if found.ndim != 3 or found.shape[:2] != p2p.shape[:2]:
            raise ValueError(f"expected tokens [B, N, D] beside p2p, received {list(found.shape)}")
        similarity = reference.token_similarity(found)
    chosen = choose(backend, cam, patches=cam.shape[-1])
    if chosen == "reference":
        return reference.stage_maps(
            cam,
            c2p,
            p2p,
            stages,
            similarity=similarity,
            ratio=ratio,
            alpha=alpha,
            include_self=include_self,
            propagation=propagation,
            fuse=fuse,
        )
    operations = _operations(chosen, cam)
    kinds = {stage: _STEPS[stage] for stage in stages}
    starts: dict[str, Tensor] = {}
    for kind, _ in kinds.values():
        if kind not in starts and kind == "modulated":
            count = reference.related_count(ratio, p2p.shape[-1])
            product = operations.modulated_cam(cam, c2p, similarity, count, alpha, include_self)
            starts[kind] = product.sqrt_() if fuse == "sqrt" else product
        elif kind not in starts:
            starts[kind] = reference.couple(cam, c2p, fuse) if kind == "c2p" else torch.relu(cam)
    moved = [kind for kind, propagated in kinds.values() if propagated]
    ends: dict[str, Tensor] = {}
    if moved:  # all in one pass over p2p
        together = torch.cat([starts[kind] for kind in moved], 1)
        parts = operations.propagate(together, p2p, propagation).chunk(len(moved), 1)
        ends = dict(zip(moved, parts, strict=True))
    return {
        stage: (ends if propagated else starts)[kind] for stage, (kind, propagated) in kinds.items()
    }


def full_size_cam(
    grids: Sequence[Tensor],
    size: tuple[int, int],
    epsilon: float = 1e-8,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """The CAM at the image's size: upsampled, summed over scales, min-max (method §5).

    Args:
        grids: per scale [C, h, w], flips already flipped back and summed; at least one scale.
        size: (H, W) of the image.
        epsilon: added to the range of each map, above 0; `CamOptions.epsilon` has a stage's.
        backend: see the module.

    Returns:
        [C, H, W] in [0, 1].

    Raises:
        ValueError: no scales, scales of different numbers of classes, or values out of range.
    """
    if isinstance(grids, Tensor):
        raise ValueError("expected a list of grids, one a scale, received a tensor")
    if not isinstance(size, Sequence) or len(size) != 2 or min(size) < 1 or not epsilon > 0:
        raise ValueError(
            f"expected a size (H, W) and an epsilon above 0, received {size}, {epsilon}"
        )
    grids = _wide(backend, **{f"grid {n}": grid for n, grid in enumerate(grids)})
    if not grids or any(grid.ndim != 3 or len(grid) != len(grids[0]) for grid in grids):
        raise ValueError(f"expected grids [C, h, w], received {[list(g.shape) for g in grids]}")
    if choose(backend, grids[0]) == "reference":
        return reference.normalise(reference.fuse_scales(grids, size), epsilon)
    return eager.full_size_cam(grids, size, epsilon)


def _operations(chosen: str, like: Tensor) -> Any:
    """The module whose functions compute: operators where dispatch leads to what was chosen."""
    if chosen == "triton":
        if like.is_cuda:
            return operators
        from wsssfast.kernels import fused  # in the interpreter

        return fused
    return eager if like.is_cuda else operators


def _wide(backend: Backend, **given: Tensor) -> list[Tensor]:
    """All in one dtype, float32 or float64, for sums in half precision are too coarse."""
    tensors = list(given.values())
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            told = getattr(tensor, "dtype", type(tensor).__name__)
            raise ValueError(f"expected {name} as a tensor of floats, received {told}")
        if tensor.device != tensors[0].device:
            raise ValueError(
                f"expected {name} on {tensors[0].device} as the others, received {tensor.device}"
            )
        if tensor.requires_grad and backend != "reference" and torch.is_grad_enabled():
            raise ValueError(
                f"expected {name} without gradients, as under torch.no_grad(), received one that "
                "requires them; backend 'reference' is differentiable"
            )
    dtypes = [tensor.dtype for tensor in tensors]
    work = reduce(torch.promote_types, dtypes, torch.float32)
    return [tensor.to(work) for tensor in tensors]


def _expect_ratio(ratio: float) -> None:
    if not 0 < ratio <= 1:
        raise ValueError(f"expected a ratio in (0, 1], received {ratio}")


def _expect_propagation(propagation: str) -> None:
    if propagation not in PROPAGATIONS:
        raise ValueError(
            f"expected propagation {', '.join(PROPAGATIONS)}, received {propagation!r}"
        )


def _expect(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"expected {name} of shape {list(shape)}, received {list(tensor.shape)}")
