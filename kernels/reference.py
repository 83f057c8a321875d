"""The method, equation by equation, in plain PyTorch: what "correct" means for every other path.

Everything here runs on CPU in float64 and spends memory and time freely; nothing imports Triton.
Equation numbers are those of Li, Su, Cui, Liu: "Semantic-modulation-based Weakly Supervised
Semantic Segmentation" (2025); [M] is the public code of its baseline, MCTformer-V2.

Shape letters: B images, L layers, M heads, d head width, C classes, N = h*w patches, T = C + N
tokens with the class tokens first.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def attention_probabilities(query: Tensor, key: Tensor, scale: float | None = None) -> Tensor:
    """Eq. 2: softmax(Q K^T / sqrt(d)), rows are queries.

    Args:
        query: [B, M, T, d].
        key: [B, M, T, d].
        scale: factor on the scores, 1/sqrt(d) where None.

    Returns:
        [B, M, T, T] in [0, 1], rows sum to 1 over class and patch tokens together.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return torch.softmax(query @ key.transpose(-2, -1) * scale, dim=-1)


def class_and_patch_attention(
    head_means: Sequence[Tensor], num_classes: int, c2p_layers: int, p2p_layers: int
) -> tuple[Tensor, Tensor]:
    """Average the head-averaged attention over layers and cut out its two blocks ([M], method §2).

    Args:
        head_means: one [B, T, T] per layer, first layer first.
        num_classes: C, the number of class tokens at the front.
        c2p_layers: how many last layers the class-to-patch attention averages ([M]: 3).
        p2p_layers: how many last layers the patch-to-patch attention averages ([M]: all).

    Returns:
        c2p [B, C, N] and p2p [B, N, N]. Rows of p2p sum to less than 1 and stay so.
    """
    c2p = torch.stack(list(head_means[-c2p_layers:])).mean(0)[:, :num_classes, num_classes:]
    p2p = torch.stack(list(head_means[-p2p_layers:])).mean(0)[:, num_classes:, num_classes:]
    return c2p, p2p


def token_similarity(tokens: Tensor) -> Tensor:
    """Cosine similarity of patch tokens, the alternative ranking of `--related-by tokens`.

    Args:
        tokens: [B, N, D], the last block's patch tokens as they enter the head.

    Returns:
        [B, N, N] in [-1, 1]; a zero token is similar to nothing (0). float32, or float64 where
        the tokens are.
    """
    wide = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    unit = F.normalize(wide, dim=-1, eps=torch.finfo(wide.dtype).tiny ** 0.5)
    return (unit @ unit.transpose(-2, -1)).clamp_(-1, 1)  # rounding exceeds 1 by a few units


def related_count(ratio: float, patches: int) -> int:
    """The k of Eq. 3: int(ratio * N), at least 1 (rounding down is ours)."""
    return max(1, int(ratio * patches))


def related_patches(similarity: Tensor, count: int, include_self: bool = True) -> Tensor:
    """U(i) of Eq. 3: for each row the `count` columns with the largest values.

    Ties go to the lowest index. Without the diagonal at most N - 1 patches can be chosen.

    Args:
        similarity: [B, N, N], the higher the more related.
        count: k, 1 to N.
        include_self: whether the diagonal takes part in the ranking.

    Returns:
        bool [B, N, N], True at (i, j) where patch j is in U(i).
    """
    if not include_self:
        batch, n, _ = similarity.shape
        others = ~torch.eye(n, dtype=torch.bool, device=similarity.device).expand(batch, n, n)
        related = torch.zeros_like(others)
        rest = similarity[others].reshape(batch, n, n - 1)
        related[others] = related_patches(rest, min(count, n - 1)).flatten()
        return related
    order = torch.sort(similarity, dim=-1, descending=True, stable=True).indices
    chosen = torch.zeros(similarity.shape, dtype=torch.bool, device=similarity.device)
    return chosen.scatter(-1, order[..., :count], True)


def related_mean(c2p: Tensor, related: Tensor) -> Tensor:
    """Eq. 3: r(c, i) = mean over j in U(i) of c2p[c, j]; 0 where U(i) is empty.

    Args:
        c2p: [B, C, N], unmodulated.
        related: bool [B, N, N] from `related_patches`.

    Returns:
        [B, C, N].
    """
    weights = related.to(c2p.dtype)
    total = torch.einsum("bij,bcj->bci", weights, c2p)
    return total / weights.sum(-1).clamp(min=1).unsqueeze(1)


def modulate(c2p: Tensor, related_means: Tensor, alpha: float = 1.2) -> Tensor:
    """Eq. 4: c2p' = c2p + alpha * r."""
    return c2p + alpha * related_means


def couple(cam: Tensor, c2p: Tensor, fuse: str = "product") -> Tensor:
    """Eq. 5: relu(Original-CAM) * c2p elementwise ([M] applies the relu); `sqrt`: its root."""
    product = torch.relu(cam) * c2p
    return product.sqrt() if fuse == "sqrt" else product


def propagate(cam: Tensor, p2p: Tensor, propagation: str = "gather") -> Tensor:
    """Eq. 6, in either reading, or with both at once.

    `gather` ([M]): final[c, i] = sum over j of p2p[i, j] * cam[c, j].
    `scatter` (the equation to the letter, cam @ p2p): final[c, i] = sum over j of
    cam[c, j] * p2p[j, i].
    `geometric` (ours): the weight of i and j is sqrt(p2p[i, j] * p2p[j, i]), large where each of
    them attends to the other; a patch that all attend to gives little to those it does not answer.

    Args:
        cam: [B, C, N].
        p2p: [B, N, N].
        propagation: "gather", "scatter" or "geometric".

    Returns:
        [B, C, N].
    """
    if propagation == "gather":
        return cam @ p2p.transpose(-2, -1)
    if propagation == "geometric":
        return cam @ (p2p * p2p.transpose(-2, -1)).sqrt()
    return cam @ p2p


def stage_maps(
    cam: Tensor,
    c2p: Tensor,
    p2p: Tensor,
    stages: Sequence[str],
    *,
    similarity: Tensor | None = None,
    ratio: float = 0.3,
    alpha: float = 1.2,
    include_self: bool = True,
    propagation: str = "gather",
    fuse: str = "product",
) -> dict[str, Tensor]:
    """Every requested stage of the refinement, all starting from relu(Original-CAM) (method §4).

    Args:
        cam: [B, C, N] Original-CAM (Eq. 1), flattened row by row.
        c2p: [B, C, N] class-to-patch attention.
        p2p: [B, N, N] patch-to-patch attention.
        stages: names out of `wsssfast.kernels.STAGES`.
        similarity: [B, N, N] to rank the related patches by; p2p where None.
        ratio: share of the patches that are related (0.3).
        alpha: weight of the related mean (1.2).
        include_self: whether a patch may be related to itself.
        propagation: "gather", "scatter" or "geometric".
        fuse: "product" (Eq. 5), or "sqrt", its root (MCTformer+).

    Returns:
        stage name -> [B, C, N], values >= 0.
    """
    related = related_patches(
        p2p if similarity is None else similarity,
        related_count(ratio, p2p.shape[-1]),
        include_self,
    )
    modulated_c2p = modulate(c2p, related_mean(c2p, related), alpha)
    original = torch.relu(cam)
    maps = {
        "original": original,
        "original+p2p": propagate(original, p2p, propagation),
        "original+c2p": couple(cam, c2p, fuse),
        "original+c2p+p2p": propagate(couple(cam, c2p, fuse), p2p, propagation),
        "modulated": couple(cam, modulated_c2p, fuse),
        "final": propagate(couple(cam, modulated_c2p, fuse), p2p, propagation),
    }
    return {stage: maps[stage] for stage in stages}


def fuse_scales(grids: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Sum over scales after bilinear upsampling to the image's size (method §5).

    Args:
        grids: per scale [C, h, w], flips already flipped back and summed.
        size: (H, W) of the original image.

    Returns:
        [C, H, W].
    """
    full = [F.interpolate(g[None], size, mode="bilinear", align_corners=False)[0] for g in grids]
    return torch.stack(full).sum(0)


def normalise(maps: Tensor, epsilon: float = 1e-8) -> Tensor:
    """(x - min) / (max - min + epsilon) per map over its last two dimensions (method §5)."""
    low = maps.amin((-2, -1), keepdim=True)
    high = maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low + epsilon)
