"""Selection, modulation and propagation in Triton, on random and adversarial rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsssfast import kernels
from wsssfast.kernels import reference
from wsssfast.kernels.backend import MOST_PATCHES, choose
from wsssfast.kernels.selection import select

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALLEST = 1e-45  # a denormal


def rows_like(kind, rows, n, generator):
    """[1, rows, n] of one adversarial kind."""
    random = torch.rand(1, rows, n, generator=generator)
    return {
        "random": random,
        "signed": random - 0.5,
        "equal": torch.full((1, rows, n), 0.25),
        "zero": torch.zeros(1, rows, n),
        "signed zeros": torch.where(random > 0.5, 0.0, -0.0),
        "denormal": (random * 8).floor() * SMALLEST,
        "one-hot": torch.eye(n)[None, :rows].flip(-1),
        "huge": (random - 0.5) * 6e38,
        "infinite": torch.where(random > 0.7, torch.inf, random),
        "few values": (random * 4).floor() / 4,
        "neighbours": 0.5 + (random * 4).floor() * 2.0**-24,
    }[kind].to(DEVICE)


KINDS = ["random", "signed", "equal", "zero", "signed zeros", "denormal", "one-hot", "huge",
         "infinite", "few values", "neighbours"]  # fmt: skip


@pytest.mark.parametrize("n", [1, 2, 9])
@pytest.mark.parametrize("kind", KINDS)
def test_selection_is_the_reference_s(kind, n):
    rows = rows_like(kind, n, n, torch.Generator().manual_seed(n))
    for ratio in (1e-9, 0.4, 1.0):
        for self_too in (True, False):
            given = {"include_self": self_too, "backend": "triton"}
            found = kernels.related_patches(rows, ratio, **given)
            wanted = kernels.related_patches(rows, ratio, **(given | {"backend": "reference"}))
            assert torch.equal(found, wanted), (ratio, self_too)


@pytest.mark.parametrize("n", [31, 64, 100, 1500])
@pytest.mark.parametrize("kind", KINDS)
def test_selection_of_long_rows(kind, n):
    """Blocks that are full and not, and more than one warp a row."""
    rows = rows_like(kind, 3, n, torch.Generator().manual_seed(n))
    count = int(0.3 * n)
    threshold, cut = select(rows, count)
    order = rows[0].sort(descending=True, stable=True).indices[:, :count]
    bits = torch.where(rows == 0, 0.0, rows)[0].view(torch.int32)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    column = torch.arange(n, device=DEVICE)
    for i in range(3):
        above, tied = bits[i] > threshold[0, i], bits[i] == threshold[0, i]
        chosen = above | (tied & (column < cut[0, i]))
        assert chosen.nonzero().flatten().tolist() == sorted(order[i].tolist())


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_selection_equals_a_stable_descending_sort(data):
    n = data.draw(st.integers(1, 12))
    values = st.one_of(
        st.sampled_from([0.0, -0.0, SMALLEST, -SMALLEST, 0.25, 0.5, 0.5 + 2**-24, 3e38, -3e38]),
        st.floats(width=32, allow_nan=False),
    )
    rows = data.draw(st.lists(st.lists(values, min_size=n, max_size=n), min_size=n, max_size=n))
    ratio = data.draw(st.floats(0.01, 1.0))
    include_self = data.draw(st.booleans())
    count = max(1, int(ratio * n))
    found = kernels.related_patches(
        torch.tensor([rows], device=DEVICE), ratio, include_self=include_self, backend="triton"
    )[0].cpu()
    for i, row in enumerate(torch.tensor(rows).tolist()):
        allowed = [j for j in range(n) if include_self or j != i]
        wanted = sorted(allowed, key=lambda j: (-row[j], j))[:count]
        assert found[i].nonzero().flatten().tolist() == sorted(wanted)


@pytest.mark.parametrize("related_by", ["attention", "tokens"])
@pytest.mark.parametrize("propagation", kernels.PROPAGATIONS)
@pytest.mark.parametrize(("b", "c", "n"), [(1, 1, 1), (2, 3, 35), (1, 20, 64), (1, 200, 9)])
@pytest.mark.parametrize("include_self", [True, False])
def test_refine_equals_the_reference_in_float64(b, c, n, propagation, related_by, include_self):
    """Every stage within 1e-6 of its range; ties across the cut included."""
    generator = torch.Generator().manual_seed(n)
    cam = torch.randn(b, c, n, generator=generator).to(DEVICE)
    c2p = (torch.rand(b, c, n, generator=generator) / n).to(DEVICE)
    p2p = (torch.rand(b, n, n, generator=generator) * 64).round().div(64 * n).to(DEVICE)
    tokens = torch.randint(-3, 4, (b, n, 8), generator=generator).float().to(DEVICE)
    options = {"include_self": include_self, "propagation": propagation}
    found = kernels.refine(
        cam, c2p, p2p, kernels.STAGES, backend="triton",
        tokens=tokens if related_by == "tokens" else None, **options,
    )  # fmt: skip
    similarity = reference.token_similarity(tokens) if related_by == "tokens" else p2p
    wanted = reference.stage_maps(
        cam.double(), c2p.double(), p2p.double(), kernels.STAGES,
        similarity=similarity.double(), **options,
    )  # fmt: skip
    assert tuple(found) == kernels.STAGES
    for stage in kernels.STAGES:
        span = float(wanted[stage].max() - wanted[stage].min()) or 1.0
        assert (found[stage].double() - wanted[stage]).abs().max() <= 1e-6 * span, stage


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_computed_in_float32(dtype):
    generator = torch.Generator().manual_seed(0)
    cam, c2p = (torch.rand(1, 3, 20, generator=generator).to(dtype).to(DEVICE) for _ in range(2))
    p2p = torch.rand(1, 20, 20, generator=generator).to(dtype).to(DEVICE)
    found = kernels.refine(cam, c2p, p2p, backend="triton")["final"]
    wanted = kernels.refine(cam.double(), c2p.double(), p2p.double(), backend="reference")["final"]
    assert found.dtype == torch.float32
    assert (found.double() - wanted).abs().max() <= 1e-5 * wanted.max()


def test_views_with_odd_strides_are_taken():
    generator = torch.Generator().manual_seed(0)
    wide = torch.rand(2, 33, 50, generator=generator).to(DEVICE)
    p2p, maps = wide[:, :, 3:36], wide[:, 5:9, 1:34]
    for propagation in kernels.PROPAGATIONS:
        found = kernels.propagate(maps, p2p, propagation, backend="triton")
        wanted = kernels.propagate(maps, p2p, propagation, backend="reference")
        assert (found - wanted).abs().max() <= 1e-5
    turned = p2p.transpose(1, 2)  # rows that are not contiguous
    found = kernels.related_mean(maps, turned, backend="triton")
    assert (found - kernels.related_mean(maps, turned, backend="reference")).abs().max() <= 1e-6


def test_what_the_kernels_do_not_take_goes_the_slower_way_and_says_so():
    choose.__globals__["_instead"].cache_clear()
    row = torch.zeros(1, device=DEVICE)
    with pytest.warns(RuntimeWarning, match="more than 16384 patches"):
        assert choose("triton", row, patches=MOST_PATCHES + 1) == "eager"
    assert choose("triton", row, patches=MOST_PATCHES + 1) == "eager"  # one warning
    with pytest.warns(RuntimeWarning, match="float64"):
        assert choose("triton", row.double()) == "eager"
    with pytest.warns(RuntimeWarning, match="heads wider than 128"):
        assert choose("triton", row, width=256) == "eager"
    assert choose("triton", row, width=128, patches=MOST_PATCHES) == "triton"


def test_triton_is_refused_where_it_cannot_run(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="expects CUDA tensors"):
        choose("triton", torch.zeros(1))
    with pytest.raises(ValueError, match="expected backend auto, triton"):
        choose("cuda", torch.zeros(1))
