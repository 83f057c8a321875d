"""The operators as PyTorch sees them: schemas, fake functions, and no graph break at them."""

import pytest
import torch
from support import tiny_model

from wsssfast import kernels
from wsssfast.kernels import operators

B, C, N, M, D = 2, 3, 7, 2, 8


def inputs(name):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.rand(shape, generator=generator)

    query, key, value = (draw(B, C + N, M, D).transpose(1, 2) for _ in range(3))
    cam, c2p, p2p = draw(B, C, N), draw(B, C, N), draw(B, N, N)
    return {
        "attend_and_add": (query, key, value, 0.3, C, 0.5, draw(B, C + N, C + N), draw(B, C, N)),
        "attend_with_lse": (query, key, value, 0.3),
        "project_into": (draw(B, N, 6), draw(10, 6), draw(10), draw(B, N, 2, 1, 5)),
        "related_mean": (c2p, p2p, 2, True),
        "modulated_cam": (cam, c2p, p2p, 2, 1.2, False),
        "propagate": (cam, p2p, "geometric"),
    }[name]


@pytest.mark.parametrize(
    "name",
    ["attend_and_add", "attend_with_lse", "project_into", "related_mean", "modulated_cam",
     "propagate"],
)  # fmt: skip
def test_operators_pass_opcheck(name):
    """Schema, aliasing, and shapes and strides of the fake function."""
    torch.library.opcheck(getattr(operators, name).default, inputs(name))


def test_attention_mean_is_known_to_the_compiler():
    """It has no CPU path; its fake function must still say what the kernel gives."""
    with torch.device("meta"):
        kept, lse = torch.empty(4, B, C + N, 2, M, D), torch.empty(4, B, M, C + N)
    c2p, p2p = operators.attention_mean(kept, lse, C, 3, 4, 0.3)
    assert (c2p.shape, p2p.shape) == ((3, B, C, N), (B, N, N))
    assert (c2p.stride(-2), p2p.stride(-2)) == (16, 16)


def test_the_export_forward_compiles_without_a_graph_break():
    model = tiny_model()
    images = torch.rand(1, 3, 24, 32)

    def export(images):
        captured = model.capture(images)
        maps = captured.cam.flatten(2), captured.c2p, captured.p2p
        return kernels.refine(*maps, kernels.STAGES)

    with torch.no_grad():
        wanted = export(images)
        compiled = torch.compile(export, backend="aot_eager", fullgraph=True)
        found = compiled(images)
    for stage in kernels.STAGES:
        assert torch.allclose(found[stage], wanted[stage], atol=1e-6)
