"""The public operations: check the arguments, choose an implementation, compute.

Each takes tensors of any device. `backend="reference"` runs the equation-by-equation code that
defines correctness; `backend="auto"` takes the fastest path that this device has.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from wsssfast.kernels import eager, reference

STAGES = (
    "original",
    "original+p2p",
    "original+c2p",
    "original+c2p+p2p",
    "modulated",
    "final",
)
Backend = Literal["auto", "eager", "reference"]
Propagation = Literal["gather", "scatter"]


def attention_capture(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    num_classes: int,
    c2p_total: Tensor | None = None,
    p2p_total: Tensor | None = None,
    scale: float | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Attend, and add the head-averaged attention's wanted blocks to running totals (Eq. 2).

    Args:
        query: [B, M, T, d], T = num_classes + N.
        key: like `query`.
        value: like `query`.
        num_classes: C >= 0 leading class tokens.
        c2p_total: [B, C, N], added to in place where given.
        p2p_total: [B, N, N], added to in place where given.
        scale: factor on the scores, 1/sqrt(d) where None.
        backend: see the module.

    Returns:
        The attention output [B, M, T, d].

    Raises:
        ValueError: shapes that do not fit one another.
    """
    if query.ndim != 4 or query.shape != key.shape or query.shape != value.shape:
        raise ValueError(
            "attention_capture expects query, key and value of one shape [B, M, T, d]; received "
            f"{list(query.shape)}, {list(key.shape)}, {list(value.shape)}"
        )
    batch, _, tokens, width = query.shape
    patches = tokens - num_classes
    if patches < 1:
        raise ValueError(f"expected more than {num_classes} tokens (classes), received {tokens}")
    _expect("c2p_total", c2p_total, (batch, num_classes, patches))
    _expect("p2p_total", p2p_total, (batch, patches, patches))
    scale = width**-0.5 if scale is None else scale
    if not _uses_reference(backend):
        return eager.attend(query, key, value, scale, c2p_total, p2p_total, num_classes)
    weights = reference.attention_probabilities(query, key, scale)
    mean = weights.mean(1)
    if c2p_total is not None:
        c2p_total += mean[:, :num_classes, num_classes:]
    if p2p_total is not None:
        p2p_total += mean[:, num_classes:, num_classes:]
    return weights @ value


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
    if similarity.ndim != 3 or similarity.shape[1] != similarity.shape[2]:
        raise ValueError(f"expected similarity [B, N, N], received {list(similarity.shape)}")
    if not 0 < ratio <= 1:
        raise ValueError(f"expected a ratio in (0, 1], received {ratio}")
    count = reference.related_count(ratio, similarity.shape[-1])
    if _uses_reference(backend):
        return reference.related_patches(similarity, count, include_self)
    return eager.related_patches(similarity, count, include_self)


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
        propagation: "gather" or "scatter" (Eq. 6 as MCTformer computes it, or to the letter).
        backend: see the module.

    Returns:
        stage -> [B, C, N], values >= 0, in the order asked for.

    Raises:
        ValueError: unknown names or shapes that do not fit one another.
    """
    if cam.ndim != 3 or cam.shape != c2p.shape:
        raise ValueError(
            f"expected cam and c2p of one shape [B, C, N], received {list(cam.shape)} and "
            f"{list(c2p.shape)}"
        )
    _expect("p2p", p2p, (cam.shape[0], cam.shape[2], cam.shape[2]))
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise ValueError(f"unknown stage {unknown[0]!r}; expected one of {', '.join(STAGES)}")
    if propagation not in ("gather", "scatter"):
        raise ValueError(f"expected propagation gather or scatter, received {propagation!r}")
    if not alpha >= 0:
        raise ValueError(f"expected alpha >= 0, received {alpha}")
    if not 0 < ratio <= 1:
        raise ValueError(f"expected a ratio in (0, 1], received {ratio}")
    if tokens is not None and (tokens.ndim != 3 or tokens.shape[:2] != p2p.shape[:2]):
        raise ValueError(f"expected tokens [B, N, D] beside p2p, received {list(tokens.shape)}")
    similarity = None if tokens is None else reference.token_similarity(tokens)
    stage_maps = reference.stage_maps if _uses_reference(backend) else eager.stage_maps
    return stage_maps(
        cam,
        c2p,
        p2p,
        stages,
        similarity=similarity,
        ratio=ratio,
        alpha=alpha,
        include_self=include_self,
        propagation=propagation,
    )


def full_size_cam(
    grids: Sequence[Tensor], size: tuple[int, int], epsilon: float, *, backend: Backend = "auto"
) -> Tensor:
    """The CAM at the image's size: upsampled, summed over scales, min-max (method §5).

    Args:
        grids: per scale [C, h, w], flips already flipped back and summed; at least one scale.
        size: (H, W) of the image.
        epsilon: added to the range of each map.
        backend: see the module.

    Returns:
        [C, H, W] in [0, 1].

    Raises:
        ValueError: no scales, or scales of different numbers of classes.
    """
    if not grids or any(grid.ndim != 3 or len(grid) != len(grids[0]) for grid in grids):
        raise ValueError(f"expected grids [C, h, w], received {[list(g.shape) for g in grids]}")
    if _uses_reference(backend):
        return reference.normalise(reference.fuse_scales(grids, size), epsilon)
    return eager.full_size_cam(grids, size, epsilon)


def _uses_reference(backend: Backend) -> bool:
    if backend not in ("auto", "eager", "reference"):
        raise ValueError(f"expected backend auto, eager or reference, received {backend!r}")
    return backend == "reference"


def _expect(name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    if tensor is not None and tuple(tensor.shape) != shape:
        raise ValueError(f"expected {name} of shape {list(shape)}, received {list(tensor.shape)}")
