"""Samples: random by (seed, epoch, index) alone, in the right shape, never losing a bad file."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import folder_dataset, tiny_config, tiny_model

from wsssfast.data import open_dataset
from wsssfast.errors import WsssError
from wsssfast.models.stochastic_depth import install_drop_path, set_drop_path
from wsssfast.training.options import ClassifierOptions
from wsssfast.training.samples import ClassifierSamples, StepKeys, randomness

ALL = ClassifierOptions(
    drop_path=0.5, jitter=0.4, rand_augment="rand-m9-mstd0.5-inc1", erase=0.9, resize=40
)


def samples(dataset, options=ALL):
    return ClassifierSamples(dataset, tiny_config(classes=dataset.class_names), options, depth=4)


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one[:3], two[:3], strict=True))


def test_a_sample_is_a_function_of_seed_epoch_and_index():
    scenes = open_dataset("synthetic", split="train:6")
    drawn = samples(scenes)
    first = drawn[0, 3]
    drawn[1, 2]
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    assert same(first, drawn[0, 3])
    assert not torch.equal(first.image, drawn[1, 3].image)
    assert not torch.equal(first.image, samples(scenes, replace(ALL, seed=1))[0, 3].image)
    assert first.image.shape == (3, 32, 32)
    assert first.image.dtype == torch.float32
    assert first.target.nonzero().flatten().tolist() == list(scenes.items[3].labels)
    assert first.failed == []


def test_the_global_random_states_stay():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    samples(open_dataset("synthetic", split="train:2"))[0, 1]
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_randomness_differs_between_neighbours():
    drawn = []
    for key in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]:
        with randomness(*key) as rng:
            drawn.append((random.random(), np.random.rand(), float(torch.rand(())), rng.rand()))
    for column in zip(*drawn, strict=True):
        assert len(set(column)) == 4


def test_stochastic_depth_keeps_the_mean():
    drawn = samples(open_dataset("synthetic", split="train:1"), ClassifierOptions(drop_path=0.5))
    keep = torch.stack([drawn[epoch, 0].keep for epoch in range(400)])
    assert keep.shape == (400, 8)
    assert (keep[:, :2] == 1).all()  # the first block is never dropped
    assert set(keep[:, -1].tolist()) == {0.0, 2.0}
    assert keep.mean(0) == pytest.approx(torch.ones(8), abs=0.2)


def test_an_unreadable_image_gives_way_and_is_named(tmp_path):
    root = folder_dataset(tmp_path / "d")
    (root / "images" / "im1.png").write_bytes(b"no image")
    drawn = samples(open_dataset("folder", root))
    sample = drawn[0, 1]
    assert [i for i, _ in sample.failed] == ["im1"]
    assert torch.equal(sample.target, drawn[0, 2].target)
    for path in (root / "images").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(WsssError, match="not one can be read"):
        drawn[0, 0]


def test_a_wrong_augmentation_is_refused():
    with pytest.raises(WsssError, match="RandAugment"):
        samples(open_dataset("synthetic", split="train:1"), ClassifierOptions(rand_augment="x9"))


def test_steps_are_shared_out_without_loss():
    whole = list(StepKeys(19, 8, 1, 0, 1, seed=3, steps=range(4)))
    assert [len(keys) for keys in whole] == [8] * 4
    epoch = [index for keys in whole[:2] for _, index in keys]
    assert len(set(epoch)) == 16
    assert {e for keys in whole[2:] for e, _ in keys} == {1}
    parts = [list(StepKeys(19, 8, 2, rank, 2, seed=3, steps=range(4))) for rank in range(2)]
    for step in range(4):
        shared = [k for part in range(2) for r in range(2) for k in parts[r][2 * step + part]]
        assert shared == whole[step]
    assert list(StepKeys(19, 8, 1, 0, 1, seed=3, steps=range(3, 4))) == whole[3:]


def test_stochastic_depth_drops_the_samples_that_it_is_told_to():
    model = tiny_model()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    whole = model(images)[0]
    install_drop_path(model.blocks, 2)
    assert torch.equal(model(images)[0], whole)  # not in evaluation
    model.train()
    factors = torch.ones(2, 8)
    set_drop_path(model.blocks, factors)
    assert torch.equal(model(images)[0], whole)
    factors[1] = 0
    set_drop_path(model.blocks, factors)
    dropped = model(images)[0]
    assert torch.allclose(dropped[0], whole[0])
    embedded = model._embed(images)[1, : model.num_classes].mean(-1)
    assert torch.allclose(dropped[1], embedded)  # every branch of the second image is gone
