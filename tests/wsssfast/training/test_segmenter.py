"""The small segmenter learns from label shards, and its targets are what the shards hold."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from support import tiny_config

from wsssfast.data import open_dataset
from wsssfast.errors import WsssError
from wsssfast.models.checkpoint import load_model, load_segmenter, save_model, weights_hash
from wsssfast.models.classifier import ClassTokenViT
from wsssfast.models.segmenter import Segmenter, segment, segmenter_loss, start_from_classifier
from wsssfast.shards.format import FORMAT_VERSION
from wsssfast.shards.label_shards import LabelRecord, LabelShards, write_label_shard
from wsssfast.training.logs import read_log
from wsssfast.training.options import RunOptions
from wsssfast.training.segmenter import (
    SegmenterOptions,
    SegmenterSamples,
    predict_mask,
    score_masks,
    train_segmenter,
)
from wsssfast.training.workers import Workers

QUIET = RunOptions(loader_workers=0)


def true_labels(out, dataset):
    """Label shards of the true masks: an upper bound, and a store to read from."""
    out.mkdir()
    records = [LabelRecord.of(i.id, i.labels, dataset.load_mask(i)) for i in dataset]
    identity = {"format_version": FORMAT_VERSION, "class_names": list(dataset.class_names)}
    write_label_shard(
        out, 0, 1, records, failed={}, identity=identity, config={}, versions={}
    )  # fmt: skip
    return LabelShards(out)


def options(**changes):
    usual = {"epochs": 1, "batch_size": 8, "rate": 3e-3, "rate_batch": 8, "warmup_epochs": 0.5}
    return SegmenterOptions(**{**usual, "drop_path": 0, "jitter": 0, **changes})


@pytest.fixture(scope="module")
def scenes():
    return open_dataset("synthetic", split="train:16")


@pytest.fixture(scope="module")
def labels(scenes, tmp_path_factory):
    return true_labels(tmp_path_factory.mktemp("l") / "labels", scenes)


def test_it_learns_the_masks_of_the_shards(tmp_path, scenes, labels):
    config = tiny_config(classes=scenes.class_names)
    chosen = options(epochs=80, batch_size=16, rate_batch=16, least_area=1.0)
    model, done = train_segmenter(scenes, labels, config, chosen, tmp_path, run=QUIET)
    assert done.step == 80
    start = score_masks(Segmenter(config).eval(), scenes, Workers())["mIoU"]
    found = score_masks(model, scenes, Workers())
    assert found["mIoU"] > 2 * start
    losses = [row["loss"] for row in read_log(tmp_path)]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert found["images"] == 16
    again = load_segmenter(tmp_path / "last.safetensors")
    first = scenes.items[0].id
    assert (predict_mask(again, scenes, first) == predict_mask(model, scenes, first)).all()


def test_resumed_at_an_epochs_end_it_ends_with_the_same_bits(tmp_path, scenes, labels):
    config = tiny_config(classes=scenes.class_names)

    class StopError(Exception):
        pass

    def stop(told):
        if told.scores is not None and told.epoch == 1:
            raise StopError

    chosen = options(epochs=2, drop_path=0.3, jitter=0.4)
    whole, _ = train_segmenter(scenes, labels, config, chosen, tmp_path / "a", run=QUIET)
    with pytest.raises(StopError):
        train_segmenter(scenes, labels, config, chosen, tmp_path / "b", run=QUIET, report=stop)
    other, _ = train_segmenter(scenes, labels, config, chosen, tmp_path / "b", run=QUIET)
    assert weights_hash(whole) == weights_hash(other)


def test_targets_are_cut_and_turned_with_their_images(scenes, labels):
    config = tiny_config(classes=scenes.class_names)
    samples = SegmenterSamples(scenes, labels, config, options(least_area=0.5), depth=4)
    for index in range(6):
        sample = samples[3, index]
        assert sample.target.shape == (32, 32) and sample.target.dtype == torch.int64
        assert sample.image.shape == (3, 32, 32)
        mask = labels.mask(scenes.items[index].id)
        assert set(sample.target.unique().tolist()) <= set(np.unique(mask).tolist())
    # an image that is its own mask stays so
    flat = scenes.items[0]
    mask = labels.mask(flat.id)
    grey = Image.fromarray(np.repeat((mask == 0)[..., None] * np.uint8(255), 3, axis=2))
    drawn = SegmenterSamples(
        replace(scenes, load_image=lambda item: grey), labels, config, options(), depth=4
    )
    sample = drawn[0, 0]
    brightness = sample.image[0]
    middle = (brightness.max() + brightness.min()) / 2
    agree = ((brightness > middle) == (sample.target == 0)).float().mean()
    assert agree > 0.9


def test_255_does_not_count():
    scores = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(0, 4, (2, 6, 6), generator=torch.Generator().manual_seed(1))
    targets[0] = 255
    assert 2 * segmenter_loss(scores, targets).item() == pytest.approx(
        torch.nn.functional.cross_entropy(scores[1:], targets[1:]).item()
    )
    assert segmenter_loss(scores, torch.full_like(targets, 255)).item() == 0


def test_it_starts_from_a_classifier_and_is_no_classifier(tmp_path, scenes):
    config = tiny_config(classes=scenes.class_names)
    classifier, model = ClassTokenViT(config).eval(), Segmenter(config).eval()
    start_from_classifier(model, classifier)
    images = torch.randn(2, 3, 40, 24)
    assert torch.equal(model.encoder.encode(images), classifier.encode(images))
    masks = segment(model, images)
    assert masks.shape == (2, 40, 24) and masks.dtype == torch.uint8
    save_model(model, tmp_path / "s.safetensors")
    with pytest.raises(WsssError, match=r"classifier checkpoint .* kind 'segmenter'"):
        load_model(tmp_path / "s.safetensors")
    save_model(classifier, tmp_path / "c.safetensors")
    with pytest.raises(WsssError, match=r"segmenter checkpoint .* kind 'classifier'"):
        load_segmenter(tmp_path / "c.safetensors")


def test_labels_of_other_images_are_refused(tmp_path, labels):
    other = open_dataset("synthetic", split="val:4")
    with pytest.raises(WsssError, match="images of this data set"):
        train_segmenter(
            other, labels, tiny_config(classes=other.class_names), options(), tmp_path, run=QUIET
        )
