"""The reference against loops over scalars that know nothing of it."""

import math

import numpy as np
import pytest
import torch

from wsssfast.kernels import PROPAGATIONS, STAGES, reference

ODD = [(1, 1, 1), (2, 3, 7), (1, 5, 12), (2, 2, 20)]  # B, C, N


def capture(b, c, n, seed=0, heads=2, layers=4):
    """Random float64 CAM, tokens and per-layer head means of real softmax attention."""
    generator = torch.Generator().manual_seed(seed)
    t = c + n
    query, key = (
        torch.randn(layers, b, heads, t, 8, generator=generator, dtype=torch.float64) * 2
        for _ in range(2)
    )
    cam = torch.randn(b, c, n, generator=generator, dtype=torch.float64)
    tokens = torch.randn(b, n, 6, generator=generator, dtype=torch.float64)
    return query, key, cam, tokens


def brute_attention(query, key):
    layers, b, heads, t, d = query.shape
    means = np.zeros((layers, b, t, t))
    for layer in range(layers):
        for image in range(b):
            for head in range(heads):
                for i in range(t):
                    scores = [
                        sum(
                            float(query[layer, image, head, i, x] * key[layer, image, head, j, x])
                            for x in range(d)
                        )
                        / math.sqrt(d)
                        for j in range(t)
                    ]
                    top = max(scores)
                    weights = [math.exp(s - top) for s in scores]
                    for j in range(t):
                        means[layer, image, i, j] += weights[j] / sum(weights) / heads
    return means


def brute_stages(cam, c2p, p2p, rank, ratio, alpha, include_self, propagation):
    c, n = cam.shape
    k = max(1, int(ratio * n))
    modulated = np.zeros_like(c2p)
    for i in range(n):
        others = [j for j in range(n) if include_self or j != i]
        order = sorted(others, key=lambda j: (-rank[i, j], j))[:k]
        for cls in range(c):
            mean = sum(c2p[cls, j] for j in order) / len(order) if order else 0.0
            modulated[cls, i] = c2p[cls, i] + alpha * mean

    def walk(values):
        out = np.zeros_like(values)
        for cls in range(c):
            for i in range(n):
                for j in range(n):
                    there, back = p2p[i, j], p2p[j, i]
                    both = {"gather": there, "scatter": back, "geometric": (there * back) ** 0.5}
                    weight = both[propagation]
                    out[cls, i] += weight * values[cls, j]
        return out

    positive = np.maximum(cam, 0)
    return {
        "original": positive,
        "original+p2p": walk(positive),
        "original+c2p": positive * c2p,
        "original+c2p+p2p": walk(positive * c2p),
        "modulated": positive * modulated,
        "final": walk(positive * modulated),
    }


@pytest.mark.parametrize(("b", "c", "n"), ODD)
@pytest.mark.parametrize("propagation", PROPAGATIONS)
@pytest.mark.parametrize(("related_by", "include_self"), [("attention", True), ("tokens", False)])
def test_every_stage_equals_the_brute_force(b, c, n, propagation, related_by, include_self):
    query, key, cam, tokens = capture(b, c, n)
    means = [
        reference.attention_probabilities(q, k).mean(1) for q, k in zip(query, key, strict=True)
    ]
    brute = brute_attention(query, key)
    np.testing.assert_allclose(torch.stack(means).numpy(), brute, atol=1e-14)

    c2p, p2p = reference.class_and_patch_attention(means, c, c2p_layers=3, p2p_layers=4)
    np.testing.assert_allclose(c2p.numpy(), brute[1:].mean(0)[:, :c, c:], atol=1e-14)
    np.testing.assert_allclose(p2p.numpy(), brute.mean(0)[:, c:, c:], atol=1e-14)
    assert p2p.sum(-1).max() < 1  # rows are not renormalised

    similarity = reference.token_similarity(tokens)
    rank = p2p if related_by == "attention" else similarity
    found = reference.stage_maps(
        cam, c2p, p2p, STAGES, similarity=None if related_by == "attention" else similarity,
        ratio=0.3, alpha=1.2, include_self=include_self, propagation=propagation,
    )  # fmt: skip
    assert tuple(found) == STAGES
    for image in range(b):
        wanted = brute_stages(
            cam[image].numpy(), c2p[image].numpy(), p2p[image].numpy(), rank[image].numpy(),
            0.3, 1.2, include_self, propagation,
        )  # fmt: skip
        for stage in STAGES:
            span = max(np.ptp(wanted[stage]), 1e-300)
            difference = np.abs(found[stage][image].numpy() - wanted[stage]).max()
            assert difference <= 1e-5 * span, stage


def test_token_similarity_is_the_cosine():
    tokens = torch.randn(1, 5, 3, dtype=torch.float64)
    tokens[0, 2] = 0
    found = reference.token_similarity(tokens)[0]
    for i in range(5):
        for j in range(5):
            a, b = tokens[0, i], tokens[0, j]
            wanted = 0.0 if 2 in (i, j) else float(a @ b / (a.norm() * b.norm()))
            assert abs(float(found[i, j]) - wanted) < 1e-14


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_token_similarity_keeps_its_range(dtype):
    tokens = torch.randn(4, 50, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    tokens[0, 0], tokens[0, 1] = 1e-3, 0
    found = reference.token_similarity(tokens)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    assert found.abs().max() <= 1
    assert abs(float(found[0, 0, 0]) - 1) < 1e-6 and not found[0, 1].any()
    wanted = reference.token_similarity(tokens.double())
    assert (found.double() - wanted).abs().max() <= 1e-6


def test_ties_go_to_the_lowest_index():
    rank = torch.tensor([[[1.0, 2, 2, 2], [0, 0, 0, 0], [3, 1, 1, 3], [5, 5, 5, 5]]])
    found = reference.related_patches(rank, 2)
    assert found.int().tolist() == [[[0, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 1], [1, 1, 0, 0]]]
    found = reference.related_patches(rank, 2, include_self=False)
    assert found.int().tolist() == [[[0, 1, 1, 0], [1, 0, 1, 0], [1, 0, 0, 1], [1, 1, 0, 0]]]


@pytest.mark.parametrize(
    ("ratio", "n", "k"), [(0.3, 196, 58), (0.3, 1, 1), (0.1, 9, 1), (1.0, 7, 7)]
)
def test_the_number_of_related_patches_rounds_down_to_at_least_one(ratio, n, k):
    assert reference.related_count(ratio, n) == k


def test_alpha_zero_is_the_unmodulated_baseline():
    query, key, cam, _ = capture(1, 3, 9)
    means = [
        reference.attention_probabilities(q, k).mean(1) for q, k in zip(query, key, strict=True)
    ]
    c2p, p2p = reference.class_and_patch_attention(means, 3, 3, 4)
    found = reference.stage_maps(cam, c2p, p2p, STAGES, alpha=0.0)
    assert torch.equal(found["final"], found["original+c2p+p2p"])
    assert torch.equal(found["modulated"], found["original+c2p"])


def test_scales_are_upsampled_by_the_bilinear_rule_and_summed():
    grids = [torch.rand(2, 3, 4, dtype=torch.float64), torch.rand(2, 5, 2, dtype=torch.float64)]
    height, width = 11, 9
    found = reference.fuse_scales(grids, (height, width))
    wanted = np.zeros((2, height, width))
    for grid in grids:
        _, h, w = grid.shape
        for y in range(height):
            for x in range(width):
                sy = max((y + 0.5) * h / height - 0.5, 0)
                sx = max((x + 0.5) * w / width - 0.5, 0)
                y0, x0 = int(sy), int(sx)
                y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
                fy, fx = sy - y0, sx - x0
                wanted[:, y, x] += (
                    grid[:, y0, x0].numpy() * (1 - fy) * (1 - fx)
                    + grid[:, y0, x1].numpy() * (1 - fy) * fx
                    + grid[:, y1, x0].numpy() * fy * (1 - fx)
                    + grid[:, y1, x1].numpy() * fy * fx
                )
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-12)


def test_normalise_spans_zero_to_one_and_leaves_a_flat_map_at_zero():
    maps = torch.stack([torch.linspace(2, 5, 12).reshape(3, 4), torch.full((3, 4), 7.0)])
    found = reference.normalise(maps.double(), 1e-8)
    assert float(found[0].min()) == 0
    assert float(found[0].max()) == pytest.approx(3 / (3 + 1e-8), abs=1e-15)
    assert torch.equal(found[1], torch.zeros(3, 4, dtype=torch.float64))
