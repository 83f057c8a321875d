"""The dense CRF: torch and Triton against the step-by-step reference and pydensecrf."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wsssfast import kernels
from wsssfast.kernels import crf_reference, crf_torch
from wsssfast.kernels.crf import Pairwise, pairwise_terms
from wsssfast.kernels.permutohedral import build, concatenate

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = [
    "torch",
    "triton",
    pytest.param("pydensecrf", marks=pytest.mark.skipif(
        find_spec("pydensecrf") is None, reason="pydensecrf is not installed"
    )),
]  # fmt: skip
FAST = [backend for backend in BACKENDS if backend != "triton"]  # at sizes too slow interpreted
RECIPES = {
    "label": {},
    "test": {"gaussian_sxy": 4, "bilateral_sxy": 83, "bilateral_srgb": 5, "bilateral_compat": 3},
    "irn": {"bilateral_sxy": 50, "bilateral_srgb": 5},
}
# Of a marginal, for float32 sums. A pixel that can go either way multiplies its error by up to four
# each round, so scenes are compared after five: after ten, float32 and float64 may part there.
BUDGET = 5e-5
ROUNDS = 5


def scene(height, width, classes, seed=0, settings=()):
    """A smooth image with edges, and energies of scores that disagree with it."""
    generator = torch.Generator().manual_seed(seed)

    def field(channels):
        coarse = torch.rand(1, channels, 4, 5, generator=generator)
        return F.interpolate(coarse, (height, width), mode="bilinear")[0]

    image = (field(3) * 255 + 60 * (field(1) > 0.5)).clamp(0, 255).byte()
    scores = torch.rand(*settings, classes, height, width, generator=generator) + 4 * field(classes)
    return image.permute(1, 2, 0).contiguous(), -(scores / 5).clamp(1e-5, 1).log()


def reference(image, unary, pairwise):
    terms = [
        (pairwise.gaussian_sxy, float("inf"), pairwise.gaussian_compat),
        (pairwise.bilateral_sxy, pairwise.bilateral_srgb, pairwise.bilateral_compat),
    ]
    return crf_reference.mean_field(image, unary.double(), terms, pairwise.iterations)


def crf(images, unaries, pairwise=None, backend="auto"):
    """Marginals on the CPU, computed where the backend runs."""
    place = "cpu" if backend == "pydensecrf" else DEVICE
    moved = [[one.to(place) for one in many] for many in (images, unaries)]
    found = kernels.dense_crf(*moved, pairwise or Pairwise(), backend=backend)
    return [marginals.cpu() for marginals in found]


def distance(found, wanted):
    return (found - wanted).abs().max().item()


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("size", "classes"), [((37, 53), 2), ((48, 20), 7)])
def test_marginals_are_the_reference_s(backend, recipe, size, classes):
    pairwise = Pairwise(**RECIPES[recipe], iterations=ROUNDS)
    image, unary = scene(*size, classes, seed=classes)
    wanted = reference(image, unary, pairwise)
    (found,) = crf([image], [unary], pairwise, backend)
    assert distance(found, wanted) < BUDGET
    assert torch.equal(found.argmax(0), wanted.argmax(0))


@pytest.mark.parametrize("sizes", [[(12, 17, 2)], [(1, 1, 3), (1, 20, 2), (14, 9, 5)]])
def test_triton_follows_torch_for_batches_of_any_sizes(sizes):
    scenes = [scene(h, w, k, seed=h + w, settings=(2,)) for h, w, k in sizes]
    images, unaries = [image for image, _ in scenes], [unary for _, unary in scenes]
    pairwise = Pairwise(iterations=3)
    wanted = crf(images, unaries, pairwise, "torch")
    found = crf(images, unaries, pairwise, "triton")
    for one, other in zip(found, wanted, strict=True):
        assert distance(one, other) < 2e-6


def test_images_side_by_side_share_nothing():
    """What a GPU computes in one launch: the lattices of a batch, and classes that take no part."""
    scenes = [scene(20, 31, 3), scene(17, 9, 3, seed=1), scene(20, 31, 2, seed=2)]
    images = [image for image, _ in scenes]
    together = pairwise_terms(images, Pairwise())
    energy = [F.pad(u.flatten(1), (0, 0, 3 - len(u), 0), value=torch.inf).t() for _, u in scenes]
    found = crf_torch.mean_field(together, torch.cat(energy)[:, None].contiguous(), 10)[:, 0]
    alone = crf(images, [unary for _, unary in scenes], backend="torch")
    for part, one in zip(found.split([len(e) for e in energy]), alone, strict=True):
        assert distance(part.t()[3 - len(one) :], one.flatten(1)) < BUDGET


def test_a_lattice_built_together_is_those_built_apart():
    images = [scene(20, 31, 2)[0], scene(17, 9, 2, seed=1)[0]]
    together = pairwise_terms(images, Pairwise())[1]
    apart = concatenate([pairwise_terms([image], Pairwise())[1] for image in images])
    assert together.neighbours.shape == apart.neighbours.shape
    values = torch.rand(len(together.slice_vertex), 2)
    assert distance(together.filter(values), apart.filter(values)) < 1e-5


def test_settings_side_by_side_are_those_of_their_own():
    image, unary = scene(25, 32, 4, settings=(2, 3))
    (found,) = crf([image], [unary], backend="torch")
    assert found.shape == unary.shape
    for place in ((0, 0), (1, 2)):
        (alone,) = crf([image], [unary[place]], backend="torch")
        assert distance(found[place], alone) < BUDGET


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (2, 2), (9, 40)])
@pytest.mark.parametrize("colour", ["scene", "black", "white"])
def test_odd_and_single_coloured_images(backend, size, colour):
    image, unary = scene(*size, 3)
    if colour != "scene":
        image = torch.full_like(image, 255 * (colour == "white"))
    (found,) = crf([image], [unary], backend=backend)
    assert distance(found, reference(image, unary, Pairwise())) < BUDGET


def test_noise_makes_a_vertex_of_every_pixel():
    """Neighbours are missing almost everywhere, and the same pixels make the same bits."""
    generator = torch.Generator().manual_seed(3)
    image = torch.randint(0, 256, (40, 50, 3), generator=generator, dtype=torch.uint8)
    unary = torch.rand(5, 40, 50, generator=generator)
    pairwise = Pairwise(**RECIPES["irn"], iterations=ROUNDS)
    (found,) = crf([image], [unary], pairwise, "torch")
    assert distance(found, reference(image, unary, pairwise)) < BUDGET
    assert torch.equal(crf([image], [unary], pairwise, "torch")[0], found)


@pytest.mark.parametrize("backend", BACKENDS)
def test_either_kernel_alone_none_and_no_rounds(backend):
    image, unary = scene(12, 10, 3)
    start = torch.softmax(-unary, 0)
    for changes in ({"gaussian_compat": 0}, {"bilateral_compat": 0}):
        pairwise = Pairwise(**changes, iterations=2)
        (found,) = crf([image], [unary], pairwise, backend)
        assert distance(found, reference(image, unary, pairwise)) < BUDGET
        assert distance(found, start) > 0.01
    for changes in ({"gaussian_compat": 0, "bilateral_compat": 0}, {"iterations": 0}):
        (found,) = crf([image], [unary], Pairwise(**changes), backend)
        assert distance(found, start) < 1e-6


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_one_class_is_certain_and_energies_may_be_huge(backend):
    image, unary = scene(12, 15, 1)
    assert crf([image], [unary], backend=backend)[0].eq(1).all()
    image, unary = scene(12, 15, 3)
    pairwise = Pairwise(iterations=3)
    (found,) = crf([image], [1000 * unary], pairwise, backend)
    assert distance(found, reference(image, 1000 * unary, pairwise)) < BUDGET


def test_marginals_can_be_worked_on():
    image, unary = scene(4, 5, 2)
    (found,) = kernels.dense_crf([image], [unary], backend="torch")
    found /= 2
    assert found.sum(0).allclose(torch.tensor(0.5))


def test_a_lattice_of_many_points_is_told_apart_and_of_too_many_refused():
    """Keys of positions and ranks that together exceed 64 bits."""
    far = [torch.tensor([0.0, 1e-3, 450.0, 2000.0]) * (i + 1) for i in range(5)]
    assert build(far).neighbours.shape[1] - 1 >= 3 * 6
    for farther in (2, 1e5):  # more points than an int64 counts, more cells than float32 tells
        with pytest.raises(ValueError, match="larger standard deviations"):
            build([feature * farther for feature in far])
    with pytest.raises(ValueError, match="larger standard deviations"):
        crf(*([one] for one in scene(37, 53, 2)), Pairwise(gaussian_sxy=1e-6), "torch")


@pytest.mark.parametrize(
    ("image", "unary", "told"),
    [
        (torch.zeros(4, 5, 3), torch.zeros(2, 4, 5), r"uint8 \[H, W, 3\]"),
        (torch.zeros(4, 5, dtype=torch.uint8), torch.zeros(2, 4, 5), r"uint8 \[H, W, 3\]"),
        (torch.zeros(4, 5, 3, dtype=torch.uint8), torch.zeros(2, 5, 4), r"\[..., K, 4, 5\]"),
        (torch.zeros(4, 5, 3, dtype=torch.uint8), torch.zeros(0, 4, 5), r"\[..., K, 4, 5\]"),
        (np.zeros((4, 5, 3), np.uint8), torch.zeros(2, 4, 5), "torch tensors, received ndarray"),
        (torch.zeros(4, 5, 3, dtype=torch.uint8), torch.full((2, 4, 5), torch.nan), "finite"),
        (torch.zeros(4, 5, 3, dtype=torch.uint8), torch.full((2, 4, 5), torch.inf), "finite"),
    ],
)
def test_wrong_arguments_are_told(image, unary, told):
    with pytest.raises(ValueError, match=told):
        kernels.dense_crf([image], [unary])


def test_constants_and_backends_out_of_range_are_told():
    image, unary = scene(4, 5, 2)
    for changes in ({"gaussian_sxy": 0}, {"bilateral_srgb": -1}, {"bilateral_sxy": torch.nan}):
        with pytest.raises(ValueError, match="standard deviations above 0"):
            Pairwise(**changes)
    for changes in ({"gaussian_compat": -1}, {"iterations": -1}):
        with pytest.raises(ValueError, match="0 or more"):
            Pairwise(**changes)
    with pytest.raises(ValueError, match="whole iterations"):
        Pairwise(iterations=2.5)
    with pytest.raises(ValueError, match="expected backend auto"):
        kernels.dense_crf([image], [unary], backend="numpy")
    with pytest.raises(ValueError, match="as many unaries"):
        kernels.dense_crf([image], [])
    assert kernels.dense_crf([], []) == []
