"""The dense CRF of Kraehenbuehl and Koltun (2011): labels follow the image's edges.

Mean-field inference with Potts compatibility over two Gaussian kernels, symmetrically normalised:

    Q <- softmax(-unary + sum over kernels k of  compat_k * n_k * K_k(n_k * Q)),
    n_k = 1 / sqrt(K_k(1) + 1e-20)

K_k is filtering with a permutohedral lattice: the first over pixel positions, the second over
positions and colours. It computes what pydensecrf computes, the peer of every label in the field.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from wsssfast.kernels.backend import for_device, interpreted
from wsssfast.kernels.permutohedral import Lattice, build, concatenate

CrfBackend = Literal["auto", "pydensecrf", "torch", "triton"]
_NAMES = ("auto", "pydensecrf", "torch", "triton")
_CACHED_PIXELS = 1 << 20  # of a size whose spatial lattice is kept


@dataclass(frozen=True)
class Pairwise:
    """Constants of the two kernels; the defaults are MCTformer's for labels (method §6).

    Attributes:
        gaussian_sxy: standard deviation in pixels of the kernel over positions.
        gaussian_compat: its weight; 0 leaves it out.
        bilateral_sxy: standard deviation in pixels of the kernel over positions and colours.
        bilateral_srgb: its standard deviation in steps of 8-bit colour.
        bilateral_compat: its weight; 0 leaves it out.
        iterations: rounds of message passing.
    """

    gaussian_sxy: float = 3.0
    gaussian_compat: float = 3.0
    bilateral_sxy: float = 80.0
    bilateral_srgb: float = 13.0
    bilateral_compat: float = 10.0
    iterations: int = 10

    def __post_init__(self) -> None:
        widths = (self.gaussian_sxy, self.bilateral_sxy, self.bilateral_srgb)
        if not all(0 < width < float("inf") for width in widths):
            raise ValueError(f"expected standard deviations above 0, received {widths}")
        weights = (self.gaussian_compat, self.bilateral_compat, self.iterations)
        if not all(0 <= weight < float("inf") for weight in weights):
            raise ValueError(f"expected weights and iterations of 0 or more, received {weights}")
        if not isinstance(self.iterations, int):
            raise ValueError(f"expected whole iterations, received {self.iterations}")


def dense_crf(
    images: Sequence[Tensor],
    unaries: Sequence[Tensor],
    pairwise: Pairwise = Pairwise(),
    *,
    backend: CrfBackend = "auto",
) -> list[Tensor]:
    """Marginals of images of any sizes.

    On a GPU the images are one batch; on a CPU they are taken one after the other, which is as
    fast. Several settings of the unary of one image share its lattices.

    Args:
        images: torch tensors, uint8 RGB [H, W, 3] each, all on one device.
        unaries: float32 [..., K, H, W] each, energies (-log of a score) of the K classes that take
            part in that image; leading dimensions, the same in all images, are settings computed
            side by side.
        pairwise: constants of the kernels.
        backend: pydensecrf (CPU tensors), torch, triton (CUDA tensors, or its interpreter), or
            `auto`: triton on a GPU where it is installed, else torch.

    Returns:
        float32 like each unary, in [0, 1], summing to 1 over K.

    Raises:
        ValueError: shapes that do not fit one another, energies that are not finite, or a backend
            that is not here.
    """
    _check(images, unaries)
    if not images:
        return []
    chosen = choose_crf(backend, images[0].device)
    with torch.no_grad():
        flat = [u.float().reshape(-1, *u.shape[-3:]) for u in unaries]
        if chosen == "pydensecrf":
            from wsssfast.kernels.crf_pydensecrf import mean_field as one_by_one

            found = [one_by_one(i, u, pairwise) for i, u in zip(images, flat, strict=True)]
        elif images[0].is_cuda:
            found = _together(list(images), flat, pairwise, chosen)
        else:
            found = [
                _together([i], [u], pairwise, chosen)[0] for i, u in zip(images, flat, strict=True)
            ]
        return [q.reshape(u.shape) for q, u in zip(found, unaries, strict=True)]


def choose_crf(
    backend: CrfBackend, device: torch.device | str
) -> Literal["pydensecrf", "torch", "triton"]:
    """The implementation on a device; docs/crf.md has the measurements behind `auto`.

    Raises:
        ValueError: an unknown name, or one that cannot run there.
    """
    device = torch.device(device)
    if backend not in _NAMES:
        raise ValueError(f"expected backend {', '.join(_NAMES)}, received {backend!r}")
    if backend == "triton" and not (device.type == "cuda" or interpreted()):
        raise ValueError(
            f"backend triton expects CUDA tensors (or TRITON_INTERPRET=1), received {device}"
        )
    if backend == "triton" and find_spec("triton") is None:
        raise ValueError("backend triton is not installed: pip install triton")
    if backend == "pydensecrf":
        if device.type != "cpu":
            raise ValueError(f"backend pydensecrf expects CPU tensors, received {device}")
        if find_spec("pydensecrf") is None:
            raise ValueError(
                "backend pydensecrf is not installed: pip install pydensecrf2 (Python below 3.13; "
                "it is compiled with g++); torch and triton compute the same"
            )
    if backend == "auto":
        return "triton" if for_device(device) == "triton" else "torch"
    return backend


def _check(images: Sequence[Tensor], unaries: Sequence[Tensor]) -> None:
    if len(images) != len(unaries):
        raise ValueError(f"expected as many unaries as images, received {len(unaries)}")
    for image, unary in zip(images, unaries, strict=True):
        if not isinstance(image, Tensor) or not isinstance(unary, Tensor):
            raise ValueError(
                "expected images and unaries as torch tensors, received "
                f"{type(image).__name__} and {type(unary).__name__}"
            )
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"expected images uint8 [H, W, 3], received {image.dtype} {list(image.shape)}"
            )
        if unary.ndim < 3 or unary.shape[-2:] != image.shape[:2] or 0 in unary.shape:
            raise ValueError(
                f"expected a unary [..., K, {image.shape[0]}, {image.shape[1]}] of at least one "
                f"class, received {list(unary.shape)}"
            )
        if unary.shape[:-3] != unaries[0].shape[:-3]:
            raise ValueError("expected the same leading dimensions of all unaries")
        if not unary.isfinite().all():
            raise ValueError("expected finite energies; clip scores before the logarithm")


def _together(
    images: list[Tensor], unaries: list[Tensor], pairwise: Pairwise, backend: str
) -> list[Tensor]:
    """One batch: the pixels of all images one after the other."""
    most = max(u.shape[1] for u in unaries)
    energies = [  # [P, G, K], the last class everybody's
        torch.nn.functional.pad(
            u.flatten(2).permute(2, 0, 1), (most - u.shape[1], 0), value=float("inf")
        )
        for u in unaries
    ]
    lattices = pairwise_terms(images, pairwise)
    if backend == "triton":
        from wsssfast.kernels.crf_triton import mean_field
    else:
        from wsssfast.kernels.crf_torch import mean_field
    found = mean_field(lattices, torch.cat(energies).contiguous(), pairwise.iterations)
    parts = torch.split(found, [u.shape[2] * u.shape[3] for u in unaries])
    return [
        q[..., most - u.shape[1] :].permute(1, 2, 0).reshape(u.shape)
        for q, u in zip(parts, unaries, strict=True)
    ]


def pairwise_terms(images: Sequence[Tensor], pairwise: Pairwise) -> list[Lattice]:
    """The kernels of a batch as lattices that hold normalisation, weight and alpha.

    `filter` of each gives the message: compat * n * K(n * Q).
    """
    terms = []
    if pairwise.gaussian_compat > 0:
        terms.append(
            concatenate([
                _gaussian(
                    image.shape[0], image.shape[1], pairwise.gaussian_sxy,
                    pairwise.gaussian_compat, image.device,
                )
                for image in images
            ])
        )  # fmt: skip
    if pairwise.bilateral_compat > 0:
        terms.append(_bilateral(images, pairwise))
    return terms


def _gaussian(height: int, width: int, sxy: float, compat: float, device: torch.device) -> Lattice:
    if height * width > _CACHED_PIXELS:
        return _new_gaussian(height, width, sxy, compat, device)
    return _cached_gaussian(height, width, sxy, compat, device)


def _new_gaussian(
    height: int, width: int, sxy: float, compat: float, device: torch.device
) -> Lattice:
    return _normalised(build(_positions(height, width, sxy, device)), compat)


_cached_gaussian = lru_cache(4)(_new_gaussian)  # images of one size follow one another


def _bilateral(images: Sequence[Tensor], pairwise: Pairwise) -> Lattice:
    features = [
        torch.stack([
            *_positions(image.shape[0], image.shape[1], pairwise.bilateral_sxy, image.device),
            *_over(image.reshape(-1, 3).t(), pairwise.bilateral_srgb),
        ])
        for image in images
    ]  # fmt: skip
    number = None
    if len(images) > 1:
        sizes = torch.tensor([f.shape[1] for f in features], device=images[0].device)
        number = torch.arange(len(images), device=sizes.device).repeat_interleave(sizes)
    return _normalised(build(list(torch.cat(features, 1)), number), pairwise.bilateral_compat)


def _positions(height: int, width: int, sxy: float, device: torch.device) -> list[Tensor]:
    """Positions x and y of each pixel over the standard deviation, float32 [H * W]."""
    x = _over(torch.arange(width, device=device), sxy).repeat(height)
    y = _over(torch.arange(height, device=device), sxy).repeat_interleave(width)
    return [x, y]


def _over(values: Tensor, deviation: float) -> Tensor:
    """Divided exactly: on a GPU, PyTorch multiplies by the inverse of a plain number."""
    return values.float() / torch.tensor(deviation, dtype=torch.float32, device=values.device)


def _normalised(lattice: Lattice, compat: float) -> Lattice:
    """Both n and the square root of compat * alpha on either side."""
    ones = torch.ones(len(lattice.slice_vertex), 1, device=lattice.slice_weight.device)
    norm = (lattice.filter(ones)[:, 0] * lattice.alpha + 1e-20).rsqrt()
    return lattice.weighted(norm * (compat * lattice.alpha) ** 0.5)
