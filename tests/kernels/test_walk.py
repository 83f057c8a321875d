"""Affinities and the random walk against pairs listed one by one and dense N x N matrices."""

import math

import pytest
import torch
from support import as_pairs

from wsssfast.kernels import walk_reference
from wsssfast.kernels.affinity import OFFSETS, boundary_affinity, pair_affinity
from wsssfast.kernels.random_walk import chebyshev, random_walk

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = [(1, 1), (1, 30), (12, 1), (9, 3), (2, 2), (4, 12), (6, 8), (5, 9), (7, 11), (12, 17)]
BUDGET = 1e-7  # of the maps' range, for float32 outputs; float64 is held to 1e-12


def features_of(height, width, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 6, height // 3 + 1, width // 3 + 1, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return smooth.to(dtype)


def maps_of(height, width, count=3, dtype=torch.float64):
    return torch.rand(count, height, width, generator=torch.Generator().manual_seed(1)).to(dtype)


def test_there_are_34_offsets_within_a_radius_of_5():
    assert len(OFFSETS) == len(set(OFFSETS)) == 34
    assert {(-dy, -dx) for dy, dx in OFFSETS}.isdisjoint(OFFSETS)


@pytest.mark.parametrize("size", SIZES)
def test_affinities_of_features_are_those_of_each_pair(size):
    features = features_of(*size)
    wanted = {
        pair: float(walk_reference.feature_affinity(features[0], pair))
        for pair in walk_reference.pairs(*size)
    }
    found = as_pairs(pair_affinity(features)[0])
    assert found.keys() == wanted.keys()
    assert all(abs(found[pair] - value) < 1e-14 for pair, value in wanted.items())
    assert bool(wanted) == (size[0] >= 5 and size[1] >= 9)


def test_affinities_of_a_batch_are_those_of_its_images():
    both = torch.cat([features_of(7, 11, seed=seed) for seed in (0, 1)])
    apart = [pair_affinity(one[None])[0] for one in both]
    assert torch.equal(pair_affinity(both), torch.stack(apart))


def test_affinities_have_the_gradient_of_the_equation():
    features = features_of(6, 10).requires_grad_()
    assert torch.autograd.gradcheck(pair_affinity, features)


@pytest.mark.parametrize("size", SIZES[:-1])
def test_affinities_of_boundaries_take_the_strongest_on_the_way(size):
    boundary = maps_of(*size, count=1)
    found = as_pairs(boundary_affinity(boundary)[0])
    wanted = walk_reference.boundary_affinity(boundary[0])
    assert found.keys() == wanted.keys()
    assert all(abs(found[pair] - value) < 1e-14 for pair, value in wanted.items())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("steps", [0, 1, 7, 256])
def test_a_walk_is_the_power_of_the_dense_matrix(size, steps):
    affinity, maps = pair_affinity(features_of(*size))[0], maps_of(*size)
    wanted = walk_reference.dense_walk(as_pairs(affinity), maps, 8, steps)
    (found,) = random_walk([affinity], [maps], 8, steps)
    assert (found - wanted).abs().max() < 1e-12
    affinity, maps = affinity.float(), maps.float()
    wanted = walk_reference.dense_walk(as_pairs(affinity), maps, 8, steps)
    (single,) = random_walk([affinity], [maps], 8, steps)
    assert (single - wanted).abs().max() < BUDGET
    assert torch.equal(maps, maps_of(*size).float())  # the input stays


@pytest.mark.parametrize("steps", [0, 1, 2, 7, 64, 255, 4096])
@pytest.mark.parametrize("left_out", [1e-5, 1e-9, 2e-18])
def test_chebyshev_polynomials_sum_to_the_power(steps, left_out):
    factors = chebyshev(steps, left_out)
    x = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    angles = torch.arange(len(factors), dtype=torch.float64)[:, None] * x.acos()
    found = torch.tensor(factors, dtype=torch.float64) @ angles.cos()
    assert (found - x**steps).abs().max() <= 2 * left_out + 1e-12
    assert len(factors) <= 1 + min(steps, (2 * steps * math.log(4 / left_out)) ** 0.5 + 1)
    assert abs(math.fsum(factors) - 1) < 1e-15


def test_a_walk_between_boundaries_is_the_power_of_the_dense_matrix():
    boundary, maps = maps_of(9, 10, count=1), maps_of(9, 10)
    wanted = walk_reference.dense_walk(walk_reference.boundary_affinity(boundary[0]), maps, 10, 64)
    (found,) = random_walk([boundary_affinity(boundary)[0]], [maps], 10, 64)
    assert (found - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("steps", [0, 1, 4, 40])
def test_triton_walks_as_torch_does_images_of_any_sizes_together(steps):
    sizes = [(3, 5), (12, 17), (20, 30)]
    affinities = [pair_affinity(features_of(*s, torch.float32).to(DEVICE))[0] for s in sizes]
    maps = [
        maps_of(*size, count, torch.float32).to(DEVICE)
        for size, count in zip(sizes, (2, 1, 2), strict=True)
    ]
    wanted = random_walk(affinities, maps, steps=steps, backend="torch")
    found = random_walk(affinities, maps, steps=steps, backend="triton")
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).abs().max() < BUDGET


def test_a_pair_whose_other_cell_is_outside_counts_for_nothing():
    affinity, maps = torch.ones(34, 6, 7).double(), maps_of(6, 7)
    inside = {
        (y, x, y + dy, x + dx): 1.0
        for y in range(6)
        for x in range(7)
        for dy, dx in OFFSETS
        if y + dy < 6 and 0 <= x + dx < 7
    }
    wanted = walk_reference.dense_walk(inside, maps, 8, 3)
    (found,) = random_walk([affinity], [maps], 8, 3)
    assert (found - wanted).abs().max() < 1e-12


def test_a_walk_says_what_it_expected():
    affinity, maps = torch.ones(34, 6, 7), torch.ones(2, 6, 7)
    with pytest.raises(ValueError, match="as many affinities"):
        random_walk([affinity], [])
    with pytest.raises(ValueError, match=r"\[34, h, w\]"):
        random_walk([affinity[:, 1:]], [maps])
    with pytest.raises(ValueError, match="beta"):
        random_walk([affinity], [maps], 0)
    with pytest.raises(ValueError, match="beta"):
        random_walk([affinity], [maps], steps=-1)
    with pytest.raises(ValueError, match="triton"):
        random_walk([affinity], [maps], backend="cuda")
    for wrong in (affinity * 3, -affinity, affinity.index_fill(0, torch.tensor(5), torch.nan)):
        with pytest.raises(ValueError, match=r"in \[0, 1\]"):
            random_walk([wrong], [maps])
    with pytest.raises(ValueError, match="floats"):
        random_walk([affinity], [maps.int()])
    with pytest.raises(ValueError, match="gradients"):
        random_walk([affinity.requires_grad_()], [maps])
    with pytest.raises(ValueError, match="features"):
        pair_affinity(maps)
    with pytest.raises(ValueError, match="boundaries"):
        boundary_affinity(affinity[0])
    assert random_walk([], []) == []
