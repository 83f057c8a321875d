"""Attention captured while it is computed, by every backend, against the reference in float64."""

import pytest
import torch

from wsssfast import kernels
from wsssfast.kernels import reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# batch, classes, patches, heads, head width: one row block and several, uneven tiles, no classes
SIZES = [
    (1, 1, 1, 1, 16),
    (1, 3, 7, 2, 16),
    (1, 20, 196, 1, 64),
    (1, 4, 129, 1, 32),
    (2, 130, 11, 2, 16),
    (1, 0, 5, 2, 24),
    (1, 2, 47, 2, 128),
    (1, 33, 33, 1, 80),
]
ERRORS = {torch.float64: 1e-14, torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def projections(b, c, n, heads, width, dtype, layers=1, seed=0):
    """Per layer query, key and value [B, M, T, d], drawn in float64."""
    generator = torch.Generator().manual_seed(seed)
    shape = (layers, 3, b, c + n, heads, width)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    return drawn.transpose(3, 4).to(dtype).to(DEVICE)


def capture(layers, classes, backend, c2p_layers=3, p2p_layers=12):
    """(outputs, c2p by layer, p2p) of projections."""
    attention = kernels.AttentionCapture(classes, len(layers), c2p_layers, p2p_layers, backend)
    outputs = [attention.attend(n, *layer) for n, layer in enumerate(layers) if attention.wants(n)]
    return outputs, *attention.means()


def close(found, wanted, error):
    return found.numel() == 0 or float((found.double() - wanted.double()).abs().max()) <= error


@pytest.mark.parametrize(("b", "c", "n", "heads", "width"), SIZES)
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("eager", torch.float64),
        ("eager", torch.float32),
        ("eager", torch.float16),
        ("eager", torch.bfloat16),
        ("triton", torch.float32),
        ("triton", torch.float16),
        ("triton", torch.bfloat16),
        ("reference", torch.float64),
    ],
)
def test_capture_equals_the_reference_in_float64(b, c, n, heads, width, backend, dtype):
    layers = projections(b, c, n, heads, width, dtype, layers=3)
    outputs, c2p, p2p = capture(layers, c, backend, c2p_layers=2, p2p_layers=3)
    weights = [reference.attention_probabilities(q.double(), k.double()) for q, k, _ in layers]
    wanted = reference.class_and_patch_attention([w.mean(1) for w in weights], c, 2, 3)
    for output, attention, layer in zip(outputs, weights, layers, strict=True):
        assert output.dtype == dtype
        assert close(output, attention @ layer[2].double(), 4 * ERRORS[dtype])
    total = torch.promote_types(dtype, torch.float32)
    assert (c2p.shape, p2p.shape) == ((2, b, c, n), (b, n, n))
    assert c2p.dtype == p2p.dtype == total
    assert close(c2p.mean(0), wanted[0], ERRORS[dtype])
    assert close(p2p, wanted[1], ERRORS[dtype])


@pytest.mark.parametrize(
    ("backend", "n"), [("eager", 18), ("eager", 330), ("triton", 18), ("reference", 18)]
)
def test_layers_and_heads_have_their_weights(backend, n):
    layers = projections(2, 4, n, 3, 16, torch.float32, layers=3)
    factors = torch.rand(3, 3, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    attention = kernels.AttentionCapture(4, 3, 2, 3, backend, factors)
    outputs = [attention.attend(number, *layer) for number, layer in enumerate(layers)]
    c2p, p2p = attention.means()
    maps = [reference.attention_probabilities(q.double(), k.double()) for q, k, _ in layers]
    weighted = [m * f.double()[:, None, None] for m, f in zip(maps, factors, strict=True)]
    wanted = torch.stack([one.mean(1)[:, :4, 4:] for one in weighted[-2:]])
    assert close(c2p, wanted, 3e-6)
    assert close(p2p, torch.stack([one.mean(1)[:, 4:, 4:] for one in weighted]).mean(0), 3e-6)
    for output, one, layer in zip(outputs, maps, layers, strict=True):
        assert close(output, one @ layer[2].double(), 1.2e-5)


@pytest.mark.parametrize("backend", ["eager", "triton", "reference"])
def test_a_head_may_weigh_nothing(backend):
    layers = projections(1, 2, 5, 2, 16, torch.float32)
    attention = kernels.AttentionCapture(2, 1, backend=backend, weights=torch.tensor([[0.0, 1.0]]))
    attention.attend(0, *layers[0])
    wanted = reference.attention_probabilities(*layers[0][:2].double())[:, 1] / 2
    assert close(attention.means()[1], wanted[:, 2:, 2:], 3e-6)


@pytest.mark.parametrize("backend", ["eager", "triton", "reference"])
@pytest.mark.parametrize(("c2p_layers", "p2p_layers"), [(1, 1), (3, 1), (1, 4), (9, 9)])
def test_each_attention_has_its_own_layers(backend, c2p_layers, p2p_layers):
    layers = projections(1, 4, 18, 2, 16, torch.float32, layers=4)
    outputs, c2p, p2p = capture(layers, 4, backend, c2p_layers, p2p_layers)
    assert len(outputs) == min(4, max(c2p_layers, p2p_layers))
    means = [
        reference.attention_probabilities(q.double(), k.double()).mean(1) for q, k, _ in layers
    ]
    for found, mean in zip(c2p, means[-c2p_layers:], strict=True):
        assert close(found, mean[:, :4, 4:], 1e-6)
    assert close(p2p, torch.stack(means[-p2p_layers:]).mean(0)[:, 4:, 4:], 1e-6)


@pytest.mark.parametrize("backend", ["eager", "triton", "reference"])
def test_layers_that_enter_no_mean_may_come(backend):
    layers = projections(1, 2, 9, 2, 16, torch.float32, layers=4)
    _, *wanted = capture(layers, 2, backend, 1, 2)
    attention = kernels.AttentionCapture(2, 4, 1, 2, backend)
    for number, (query, key, value) in enumerate(layers):
        found = attention.attend(number, query, key, value, 0.5)
        maps = reference.attention_probabilities(query.double(), key.double(), 0.5)
        assert close(found, maps @ value.double(), 2e-5)
    attention = kernels.AttentionCapture(2, 4, 1, 2, backend)
    for number, layer in enumerate(layers):
        attention.attend(number, *layer)
    for _ in range(2):  # asked twice, it says the same
        assert all(torch.equal(*pair) for pair in zip(attention.means(), wanted, strict=True))


@pytest.mark.parametrize("backend", ["eager", "triton", "reference"])
@pytest.mark.parametrize(
    ("order", "told"),
    [
        ([0, 2], "expected layer 1 next, layers 0 to 2 .* received layer 2"),
        ([0, 0], "expected layer 1 next, .* received layer 0"),
        ([-1], "expected layer 0 next, .* received layer -1"),
        ([0, 1, 2, 0], "expected no more layers, .* received layer 0"),
        ([0, 1, 2, 3], "expected no more layers, .* received layer 3"),
        ([], "expected all layers from 0 to 2 before their means, layer 0 did not come"),
        ([0, 1], "layer 2 did not come"),
    ],
)
def test_layers_come_once_each_in_order(backend, order, told):
    layers = projections(1, 2, 5, 2, 16, torch.float32)
    attention = kernels.AttentionCapture(2, 3, backend=backend)
    with pytest.raises(ValueError, match=told):
        for layer in order:
            attention.attend(layer, *layers[0])
        attention.means()


def test_what_is_kept_comes_in_order_too():
    attention = kernels.AttentionCapture(2, 3, 1, 1, backend="triton")
    tokens, weight = torch.zeros(1, 5, 32, device=DEVICE), torch.zeros(64, 32, device=DEVICE)
    with pytest.raises(ValueError, match="expected layer 2 next"):
        attention.project(0, tokens, weight, None, 2)


@pytest.mark.parametrize("backend", ["eager", "triton"])
def test_gradients_are_of_the_reference_alone(backend):
    query, key, value = projections(1, 2, 5, 2, 16, torch.float32)[0]
    query.requires_grad_()
    with pytest.raises(ValueError, match="without gradients"):
        kernels.AttentionCapture(2, 1, backend=backend).attend(0, query, key, value)
    attention = kernels.AttentionCapture(2, 1, backend="reference")
    attention.attend(0, query, key, value)
    attention.means()[1].square().sum().backward()
    assert query.grad.any()


@pytest.mark.parametrize("backend", ["eager", "triton"])
def test_huge_scores_stay_finite(backend):
    """One-hot rows: scores of thousands, whose exponentials overflow unless shifted."""
    layers = projections(1, 3, 37, 2, 16, torch.float32) * 60
    _, c2p, p2p = capture(layers, 3, backend)
    weights = reference.attention_probabilities(*(part.double() for part in layers[0][:2]))
    mean = weights.mean(1)
    assert close(c2p[0], mean[:, :3, 3:], 3e-3)  # of scores near 1e4 float32 keeps 1e-3
    assert close(p2p, mean[:, 3:, 3:], 3e-3)


@pytest.mark.parametrize("backend", ["eager", "triton"])
def test_nothing_is_read_from_memory_that_was_not_written(backend, monkeypatch):
    """Outputs and scratch are poisoned with NaN; none may come through."""
    empty, new_empty = torch.empty, torch.Tensor.new_empty

    def poisoned(tensor):
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poisoned(empty(*a, **k)))
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda self, *a, **k: poisoned(new_empty(self, *a, **k))
    )
    layers = projections(2, 5, 41, 2, 24, torch.float32, layers=2)
    outputs, c2p, p2p = capture(layers, 5, backend)
    assert all(bool(x.isfinite().all()) for x in (*outputs, c2p, p2p))


@pytest.mark.parametrize("backend", ["eager", "triton", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("b", "c", "n", "heads"), [(1, 0, 1, 1), (2, 3, 40, 3), (1, 20, 33, 2)])
def test_mean_of_attention_that_is_given(b, c, n, heads, backend, dtype):
    layers = projections(b, c, n, heads, 16, torch.float64, layers=2)
    given = [reference.attention_probabilities(q, k).to(dtype) for q, k, _ in layers]
    c2p, p2p = kernels.head_mean(given, c, backend=backend)
    means = torch.stack([layer.double().mean(1) for layer in given])
    assert close(c2p, means[:, :, :c, c:], 2e-7 if dtype == torch.float32 else 5e-4)
    assert close(p2p, means.mean(0)[:, c:, c:], 2e-7 if dtype == torch.float32 else 5e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "width"), [(1, 16), (45, 24), (70, 64), (33, 128)])
def test_own_attention_with_log_sum_exp(tokens, width, dtype):
    from wsssfast.kernels.flash import flash

    query, key, value = projections(2, 0, tokens, 2, width, dtype)[0]
    output, lse = flash(query, key, value, width**-0.5)
    scores = query.double() @ key.double().transpose(-2, -1) * width**-0.5
    assert close(output, scores.softmax(-1) @ value.double(), 4 * ERRORS[dtype])
    assert close(lse, scores.logsumexp(-1), 4 * ERRORS[dtype])


def test_capture_says_what_it_expected():
    query, key, value = projections(1, 2, 5, 2, 16, torch.float32)[0]
    attention = kernels.AttentionCapture(2, 1)
    with pytest.raises(ValueError, match="one shape"):
        attention.attend(0, query, key[:, :, 1:], value)
    with pytest.raises(ValueError, match="more than 7 tokens"):
        kernels.AttentionCapture(7, 1).attend(0, query, key, value)
    with pytest.raises(ValueError, match="at least one layer"):
        kernels.AttentionCapture(2, 1, c2p_layers=0)
    with pytest.raises(ValueError, match="expected classes >= 0, received -1"):
        kernels.AttentionCapture(-1, 1)
    for weight in (-1.0, torch.nan, torch.inf):
        with pytest.raises(ValueError, match="weights that are finite and >= 0"):
            kernels.AttentionCapture(2, 1, weights=torch.full((1, 2), weight))
    with pytest.raises(ValueError, match="expected layers of one shape"):
        kernels.head_mean([], 2)
    with pytest.raises(ValueError, match="more than 7 tokens"):
        kernels.head_mean([query @ key.transpose(-2, -1)], 7)
    with pytest.raises(ValueError, match="expected classes >= 0, received -1"):
        kernels.head_mean([query @ key.transpose(-2, -1)], -1)
    with pytest.raises(ValueError, match=r"a list of layers .* one tensor \[1, 2, 7, 7\]"):
        kernels.head_mean(query @ key.transpose(-2, -1), 2)
