"""Training: repeatable, learns, and says what it needs."""

import json

import pytest
import torch
from support import tiny_config

from wsssfast.data import open_dataset
from wsssfast.errors import WsssError
from wsssfast.models.checkpoint import load_model, weights_hash
from wsssfast.train import TrainOptions, train_classifier


def config(scenes):
    return tiny_config(classes=scenes.class_names)


def test_the_same_arguments_give_the_same_weights():
    scenes = open_dataset("synthetic", split="train:20")
    options = TrainOptions(epochs=1, batch_size=8, seed=3)
    before = torch.random.get_rng_state()
    first = weights_hash(train_classifier(scenes, config(scenes), options))
    assert torch.equal(before, torch.random.get_rng_state())
    assert weights_hash(train_classifier(scenes, config(scenes), options)) == first
    other = TrainOptions(epochs=1, batch_size=8, seed=4)
    assert weights_hash(train_classifier(scenes, config(scenes), other)) != first


def test_the_loss_falls():
    scenes = open_dataset("synthetic", split="train:16")
    losses = []
    options = TrainOptions(epochs=40, batch_size=16, rate=3e-3, least_area=1.0)
    train_classifier(scenes, config(scenes), options, lambda step, loss: losses.append(loss))
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_too_few_images_are_refused():
    scenes = open_dataset("synthetic", split="train:5")
    with pytest.raises(WsssError, match="one batch of 8 images, found 5"):
        train_classifier(scenes, config(scenes), TrainOptions(epochs=1, batch_size=8))


@pytest.mark.slow
def test_the_demo_scores_every_stage_on_unseen_scenes(tmp_path):
    from wsssfast.demo import run_demo

    result = run_demo(tmp_path, seed=0)
    assert json.loads(result.report.read_text())["stages"] == result.stages
    assert load_model(tmp_path / "classifier.safetensors").num_classes == 8
    # a floor well above what background alone scores (10 %)
    assert result.stages["original+c2p"] > 0.2
