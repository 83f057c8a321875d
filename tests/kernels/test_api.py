"""The batched path against the reference, and the public operations' refusals."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsssfast import kernels
from wsssfast.kernels import reference


@pytest.mark.parametrize("related_by", ["attention", "tokens"])
@pytest.mark.parametrize("propagation", kernels.PROPAGATIONS)
@pytest.mark.parametrize(("b", "c", "n"), [(1, 1, 1), (2, 3, 35), (1, 20, 196), (2, 5, 90)])
@pytest.mark.parametrize("include_self", [True, False])
def test_refine_equals_the_reference(b, c, n, propagation, related_by, include_self):
    """On the same float32 inputs every stage agrees to 1e-5 of its range with float64."""
    generator = torch.Generator().manual_seed(n)
    cam = torch.randn(b, c, n, generator=generator)
    c2p = torch.rand(b, c, n, generator=generator) / n
    p2p = torch.rand(b, n, n, generator=generator) / n
    p2p = (p2p * n * 64).round() / (n * 64)  # many exact ties
    tokens = torch.randint(-3, 4, (b, n, 8), generator=generator).float()
    options = {
        "tokens": tokens if related_by == "tokens" else None,
        "include_self": include_self,
        "propagation": propagation,
    }
    found = kernels.refine(cam, c2p, p2p, kernels.STAGES, **options)
    options["tokens"] = options["tokens"] if related_by == "attention" else tokens.double()
    if related_by == "tokens":  # rank by the very same similarities
        options["tokens"] = None
        similarity = reference.token_similarity(tokens).double()
        wanted = reference.stage_maps(
            cam.double(), c2p.double(), p2p.double(), kernels.STAGES, similarity=similarity,
            include_self=include_self, propagation=propagation,
        )  # fmt: skip
    else:
        wanted = kernels.refine(
            cam.double(), c2p.double(), p2p.double(), kernels.STAGES, backend="reference", **options
        )
    assert tuple(found) == kernels.STAGES
    for stage in kernels.STAGES:
        span = float(wanted[stage].max() - wanted[stage].min()) or 1.0
        assert (found[stage].double() - wanted[stage]).abs().max() <= 1e-5 * span, stage


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_selection_equals_a_stable_descending_sort(data):
    n = data.draw(st.integers(1, 24))
    values = st.sampled_from([0.0, 1e-45, 1e-30, 0.25, 0.5, 0.5 + 2**-24, 1.0, 3e38])
    rows = data.draw(st.lists(st.lists(values, min_size=n, max_size=n), min_size=n, max_size=n))
    ratio = data.draw(st.floats(0.01, 1.0))
    include_self = data.draw(st.booleans())
    count = max(1, int(ratio * n))
    found = kernels.related_patches(torch.tensor([rows]), ratio, include_self=include_self)[0]
    for i, row in enumerate(torch.tensor(rows).tolist()):
        allowed = [j for j in range(n) if include_self or j != i]
        wanted = sorted(allowed, key=lambda j: (-row[j], j))[:count]
        assert found[i].nonzero().flatten().tolist() == sorted(wanted)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"c2p": torch.zeros(1, 2, 5)}, "cam and c2p of one shape"),
        ({"p2p": torch.zeros(1, 4, 5)}, "p2p of shape [1, 4, 4]"),
        ({"stages": ("finally",)}, "unknown stage 'finally'"),
        ({"propagation": "both"}, "gather, scatter, geometric"),
        ({"alpha": -1.0}, "alpha >= 0"),
        ({"ratio": 0.0}, "ratio in (0, 1]"),
        ({"backend": "cuda"}, "backend auto, triton, eager, reference"),
        ({"cam": np.zeros((1, 2, 4))}, "cam as a tensor of floats, received float64"),
        ({"cam": torch.zeros(1, 2, 4).long()}, "cam as a tensor of floats, received torch.int64"),
        ({"c2p": torch.zeros(1, 2, 4, device="meta")}, "c2p on cpu as the others, received meta"),
        ({"p2p": torch.zeros(1, 4, 4, requires_grad=True)}, "p2p without gradients"),
    ],
)
def test_refine_says_what_it_expected(arguments, words):
    good = {
        "cam": torch.zeros(1, 2, 4),
        "c2p": torch.zeros(1, 2, 4),
        "p2p": torch.zeros(1, 4, 4),
    }
    with pytest.raises(ValueError) as caught:
        kernels.refine(**(good | arguments))
    assert words in str(caught.value)


@pytest.mark.parametrize("kinds", [("float16",) * 3, ("bfloat16",) * 3,
                                   ("float16", "float32", "bfloat16"),
                                   ("float32", "float64", "float16")])  # fmt: skip
def test_stages_of_any_dtypes_are_those_of_the_widest(kinds):
    torch.manual_seed(0)
    given = [torch.randn(2, 3, 37), torch.rand(2, 3, 37), torch.randn(2, 37, 37).softmax(-1)]
    given = [one.to(getattr(torch, kind)) for one, kind in zip(given, kinds, strict=True)]
    work = torch.float64 if "float64" in kinds else torch.float32
    wanted = kernels.refine(*(one.double() for one in given), kernels.STAGES, backend="reference")
    for backend in ("eager", "reference"):
        found = kernels.refine(*given, kernels.STAGES, backend=backend)
        for stage, maps in found.items():
            assert maps.dtype == work
            assert (maps - wanted[stage]).abs().max() <= 1e-6


def test_the_reference_has_gradients():
    cam = torch.rand(1, 2, 4, requires_grad=True)
    c2p, p2p = torch.rand(1, 2, 4), torch.rand(1, 4, 4)
    kernels.refine(cam, c2p, p2p, backend="reference")["final"].sum().backward()
    assert (cam.grad > 0).all()


@pytest.mark.parametrize("scales", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (37, 50)])
def test_full_size_cam_equals_the_reference(scales, size):
    grids = [torch.rand(2, 3 + s, 5, dtype=torch.float64) for s in range(scales)]
    grids[0][1] = 0
    kept = [grid.clone() for grid in grids]
    wanted = kernels.full_size_cam(grids, size, 1e-8, backend="reference")
    found = kernels.full_size_cam(grids, size, 1e-8)
    assert (found - wanted).abs().max() <= 1e-14
    assert all(torch.equal(a, b) for a, b in zip(grids, kept, strict=True))
    single = kernels.full_size_cam([g.float() for g in grids], size, 1e-8)
    assert (single.double() - wanted).abs().max() <= 1e-6


def test_full_size_cam_at_the_grid_size_leaves_its_input_alone():
    grid = torch.rand(1, 4, 4)
    kept = grid.clone()
    kernels.full_size_cam([grid], (4, 4), 1e-8)
    assert torch.equal(grid, kept)
    with pytest.raises(ValueError, match="expected grids"):
        kernels.full_size_cam([], (4, 4), 1e-8)
    with pytest.raises(ValueError, match="a list of grids"):
        kernels.full_size_cam(grid, (4, 4))
    for size, epsilon in ((6, 1e-8), ((6, 6), 0), ((6, 6), -1)):
        with pytest.raises(ValueError, match="epsilon above 0"):
            kernels.full_size_cam([grid], size, epsilon)
