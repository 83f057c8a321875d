"""Segmenters learn from label shards, and their targets are what the shards hold."""

import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import as_labels, tiny_config

from wsssfast.data import open_dataset
from wsssfast.data.dataset import IGNORE
from wsssfast.errors import BadFile, WsssError
from wsssfast.models.checkpoint import load_model, load_segmenter, save_model, weights_hash
from wsssfast.models.classifier import ClassTokenViT
from wsssfast.models.segmenter import Segmenter, SegmenterConfig, segmenter_loss
from wsssfast.segment import probabilities
from wsssfast.training.logs import read_log
from wsssfast.training.masks import TrueMasks
from wsssfast.training.options import RunOptions, SegmenterOptions
from wsssfast.training.segmenter import (
    SegmenterSamples,
    score_masks,
    segmenter_task,
    train_segmenter,
)
from wsssfast.training.starts import from_classifier, start_of, untrained
from wsssfast.training.workers import Workers

QUIET = RunOptions(loader_workers=0)


def config_of(scenes, trunk="vit"):
    vit = tiny_config(classes=scenes.class_names)
    return SegmenterConfig(scenes.class_names, trunk, vit if trunk == "vit" else None)


def options(**changes):
    usual = {
        "epochs": 1, "batch_size": 8, "rate": 3e-3, "rate_batch": 8, "new_rate": 1.0,
        "warmup_epochs": 0.5, "crop": 32, "least_scale": 0.5, "most_scale": 1.0, "drop_path": 0,
        "jitter": 0,
    }  # fmt: skip
    return SegmenterOptions(**{**usual, **changes})


@pytest.fixture(scope="module")
def scenes():
    return open_dataset("synthetic", split="train:16")


@pytest.fixture(scope="module")
def labels(scenes, tmp_path_factory):
    """Label shards of the true masks: an upper bound, and a store to read from."""
    return as_labels(tmp_path_factory.mktemp("l") / "labels", scenes)


def test_it_learns_the_masks_of_the_shards(tmp_path, scenes, labels):
    config = config_of(scenes)
    chosen = options(
        epochs=80, batch_size=16, rate_batch=16, crop=64, least_scale=0.5, most_scale=0.5,
    )  # fmt: skip
    small = replace(
        scenes,
        load_image=lambda item: scenes.load_image(item).reduce(2),
        load_mask=lambda item: scenes.load_mask(item)[::2, ::2],
    )
    model, done = train_segmenter(scenes, labels, config, chosen, tmp_path, run=QUIET)
    assert done.step == 80
    start = score_masks(Segmenter(config).eval(), small, Workers())["mIoU"]
    found = score_masks(model, small, Workers())
    assert found["mIoU"] > 2 * start
    losses = [row["loss"] for row in read_log(tmp_path)]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert found["images"] == 16
    again = load_segmenter(tmp_path / "last.safetensors")
    image = torch.from_numpy(np.array(scenes.load_image(scenes.items[0])))
    assert torch.equal(probabilities(again, image), probabilities(model, image))


def test_resumed_at_an_epochs_end_it_ends_with_the_same_bits(tmp_path, scenes, labels):
    config = config_of(scenes)

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


@pytest.mark.parametrize("name", ["resume.safetensors", "last.safetensors"])
def test_killed_inside_a_checkpoint_write_the_former_one_serves(tmp_path, scenes, labels, name):
    """The process dies with half of the second epoch's file written."""
    out = tmp_path / "cut"
    code = f"""
import os, signal, sys
sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
from pathlib import Path
import wsssfast.models.sealed as saving
from test_segmenter import QUIET, config_of, open_dataset, options, train_segmenter
from wsssfast.shards import LabelShards
publish, calls = saving.publish, []
def dying(path, write):
    def half(partial):
        write(partial)
        partial.write_bytes(partial.read_bytes()[:-99])
        os.kill(os.getpid(), signal.SIGKILL)
    calls.append(path.name)
    publish(path, half if calls.count({name!r}) == {3 if name[0] == "r" else 2} else write)
saving.publish = dying
scenes = open_dataset("synthetic", split="train:16")
labels = LabelShards(Path({str(labels.folder)!r}))
train_segmenter(scenes, labels, config_of(scenes), options(epochs=3), Path({str(out)!r}), run=QUIET)
"""
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert list(out.glob(".*.partial"))
    load_segmenter(out / "last.safetensors")  # of the first epoch, or of the second
    config = config_of(scenes)
    cut, done = train_segmenter(scenes, labels, config, options(epochs=3), out, run=QUIET)
    whole, _ = train_segmenter(
        scenes, labels, config, options(epochs=3), tmp_path / "whole", run=QUIET
    )
    assert done.step == 6 and weights_hash(cut) == weights_hash(whole)


def test_the_best_checkpoint_is_that_of_the_highest_miou(tmp_path, scenes, labels):
    held_out = open_dataset("synthetic", split="val:4")
    _, done = train_segmenter(
        scenes, labels, config_of(scenes), options(epochs=3), tmp_path, run=QUIET, held_out=held_out
    )
    scored = [row["scores"]["mIoU"] for row in read_log(tmp_path) if "scores" in row]
    assert done.best == (max(scored), 1 + scored.index(max(scored)))
    best = load_segmenter(tmp_path / "best.safetensors")
    assert score_masks(best, held_out, Workers())["mIoU"] == max(scored)


class Known:
    """Labels without 255."""

    def __init__(self, labels):
        self.labels = labels

    def mask(self, image_id):
        found = self.labels.mask(image_id)
        return np.where(found == IGNORE, 0, found)


def in_its_own_colours(scenes, labels):
    """The scenes, each image a picture of its mask: value v has the grey level v."""

    def picture(item):
        mask = labels.mask(item.id)
        return Image.fromarray(np.repeat(mask[..., None], 3, axis=2))

    return replace(scenes, load_image=picture)


@pytest.mark.parametrize("scale", [0.25, 0.5, 1.0])
def test_targets_are_cut_and_turned_with_their_images(scenes, labels, scale):
    """At sizes that need no interpolation, a crop of a mask's picture is that of the mask."""
    config = replace(config_of(scenes), mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3)
    chosen = options(least_scale=scale, most_scale=scale, crop=48)
    labels = Known(labels)
    samples = SegmenterSamples(in_its_own_colours(scenes, labels), labels, config, chosen, 0)
    for index in range(6):
        sample = samples[3, index]
        assert sample.target.shape == (48, 48) and sample.target.dtype == torch.uint8
        assert sample.image.shape == (3, 48, 48)
        mask = labels.mask(scenes.items[index].id)
        known = sample.target != IGNORE
        assert set(sample.target[known].unique().tolist()) <= set(np.unique(mask).tolist())
        assert not sample.image[:, ~known].any()  # what is padded is ignored
        assert known.sum() == np.prod([min(48, round(side * scale)) for side in mask.shape])
        same = (sample.image[0] - sample.target)[known].abs() < 0.5
        assert same.float().mean() > (0.999 if scale == 1 else 0.75)  # but where classes meet


def test_every_place_and_scale_is_drawn(scenes, labels):
    chosen = options(least_scale=0.5, most_scale=2.0, crop=64)
    samples = SegmenterSamples(scenes, labels, config_of(scenes), chosen, 0)
    drawn = [samples[epoch, 0].target for epoch in range(40)]
    assert len({tuple(target.flatten().tolist()) for target in drawn}) > 35
    assert torch.equal(samples[7, 0].target, drawn[7])


def test_255_does_not_count():
    scores = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(0, 4, (2, 6, 6), generator=torch.Generator().manual_seed(1))
    targets[0] = 255
    assert 2 * segmenter_loss(scores, targets).item() == pytest.approx(
        torch.nn.functional.cross_entropy(scores[1:], targets[1:]).item()
    )
    assert segmenter_loss(scores, torch.full_like(targets, 255)).item() == 0


@pytest.mark.parametrize("q", [0.3, 0.7, 1.0])
def test_confidence_has_the_gradient_of_the_generalised_cross_entropy(q):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 4, 5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 4, (2, 5, 6), generator=generator)
    (found,) = torch.autograd.grad(segmenter_loss(scores, targets, q), scores)
    chosen = scores.softmax(1).gather(1, targets[:, None])
    (wanted,) = torch.autograd.grad(((1 - chosen**q) / q).mean(), scores)
    assert torch.allclose(found, wanted, atol=1e-12)


def test_it_starts_from_a_classifier_and_is_no_classifier(tmp_path, scenes):
    config = tiny_config(classes=scenes.class_names)
    classifier = ClassTokenViT(config).eval()
    save_model(classifier, tmp_path / "c.safetensors")
    about, start = start_of("vit", str(tmp_path / "c.safetensors"))
    model = Segmenter(SegmenterConfig(scenes.class_names, **about)).eval()
    start(model.net.core)
    images = torch.randn(2, 3, 40, 24)
    assert torch.equal(model.net.vit.encode(images), classifier.encode(images))
    scores = model(torch.randn(2, 3, 41, 27))
    assert scores.shape == (2, 1 + len(scenes.class_names), 41, 27)
    save_model(model, tmp_path / "s.safetensors")
    with pytest.raises(WsssError, match=r"classifier checkpoint .* kind 'segmenter'"):
        load_model(tmp_path / "s.safetensors")
    with pytest.raises(WsssError, match=r"segmenter checkpoint .* kind 'classifier'"):
        load_segmenter(tmp_path / "c.safetensors")


def test_the_class_tokens_of_a_classifier_train_on(tmp_path, scenes, labels):
    classifier = ClassTokenViT(tiny_config(classes=scenes.class_names)).eval()
    about, start = from_classifier(classifier)
    config = SegmenterConfig(scenes.class_names, **about)
    model, _ = train_segmenter(
        scenes, labels, config, options(rate=1e-9), tmp_path, start=start, run=QUIET
    )
    assert torch.allclose(model.net.vit.cls_token, classifier.cls_token, atol=1e-5)


def test_labels_of_other_images_are_refused(tmp_path, labels):
    other = open_dataset("synthetic", split="val:4")
    with pytest.raises(WsssError, match="images of this data set"):
        train_segmenter(other, labels, config_of(other), options(), tmp_path, run=QUIET)
    fewer = replace(other, class_names=other.class_names[:-1])
    told = rf"data set's {len(fewer.class_names)} classes, found {len(other.class_names)}"
    with pytest.raises(WsssError, match=told):
        train_segmenter(fewer, labels, config_of(fewer), options(), tmp_path, run=QUIET)


def test_a_label_of_another_size_is_refused(tmp_path, scenes, labels):
    smaller = replace(scenes, load_image=lambda item: scenes.load_image(item).crop((0, 0, 99, 64)))
    with pytest.raises(WsssError, match=r"label of the size of image .*, 64x99, found \d+x\d+"):
        train_segmenter(smaller, labels, config_of(scenes), options(), tmp_path, run=QUIET)


def test_true_masks_are_labels_too(scenes):
    true = TrueMasks(scenes)
    assert true.ids == tuple(item.id for item in scenes)
    first = scenes.items[0]
    assert (true.mask(first.id) == scenes.load_mask(first)).all()
    fewer = TrueMasks(replace(scenes, class_names=scenes.class_names[:1]))
    beyond = next(i for i in scenes if scenes.load_mask(i).max() > 1)
    with pytest.raises(BadFile, match="values up to 1 and 255 expected"):
        fewer.mask(beyond.id)
    with pytest.raises(WsssError, match="Expected masks in the data set, found none"):
        TrueMasks(replace(scenes, load_mask=lambda item: None))


def test_masks_that_cannot_be_used_are_passed_over_and_told(tmp_path, scenes):
    def mask(item):
        if item.id == scenes.items[3].id:
            raise BadFile("damaged")
        return None if item.id == scenes.items[5].id else scenes.load_mask(item)

    some = replace(scenes, load_mask=mask)
    _, done = train_segmenter(
        some, TrueMasks(some), config_of(scenes), options(), tmp_path, run=QUIET, held_out=None
    )
    assert done.failed == {
        scenes.items[3].id: "mask: damaged", scenes.items[5].id: "mask: there is none"
    }  # fmt: skip
    none = replace(scenes, load_mask=lambda item: np.full((4, 4), 200, np.uint8))
    samples = SegmenterSamples(none, TrueMasks(none), config_of(scenes), options(), 0)
    with pytest.raises(WsssError, match="masks to train on; not one can be used"):
        samples[0, 0]


def test_a_held_out_image_that_cannot_be_scored_is_listed(tmp_path, scenes, labels):
    val = open_dataset("synthetic", split="val:4")

    def mask(item):
        found = val.load_mask(item)
        return found[:5] if item.id == val.items[1].id else found

    _, done = train_segmenter(
        scenes, labels, config_of(scenes), options(), tmp_path, run=QUIET,
        held_out=replace(val, load_mask=mask),
    )  # fmt: skip
    assert set(done.failed) == {val.items[1].id} and done.best is not None
    with pytest.raises(WsssError, match="masks of the images that are held out"):
        train_segmenter(
            scenes, labels, config_of(scenes), options(), tmp_path / "b", run=QUIET,
            held_out=replace(val, load_mask=lambda item: None),
        )  # fmt: skip


def test_what_is_held_out_is_not_trained_on(tmp_path, scenes, labels):
    held_out = scenes.subset(lambda n, item: n < 8, "some")
    _, task = segmenter_task(
        scenes, labels, config_of(scenes), options(), Workers(), untrained, held_out
    )
    assert [item.id for item in task.samples.dataset] == [item.id for item in scenes][8:]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"least_scale": 2.0, "most_scale": 1.0}, "least-scale up to most-scale"),
        ({"crop": 4}, "crop between 16"),
        ({"confidence": -1.0}, "confidence between 0"),
        ({"rate": math.nan}, "rate between"),
    ],
)
def test_odd_options_are_refused(changes, told):
    with pytest.raises(WsssError, match=told):
        options(**changes)


class TestNetworks:
    """The trunks beside the ViT, from random weights."""

    @pytest.mark.parametrize("size", [(64, 64), (70, 33)])
    def test_deeplabv3plus_segments_any_size(self, size):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = Segmenter(SegmenterConfig(("a", "b"), "resnet18")).eval()
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            scores = model(images)
            padded = torch.nn.functional.pad(images, (0, -size[1] % 16, 0, -size[0] % 16))
            quarter = model.net(padded)
        assert scores.shape == (2, 3, *size)
        assert quarter.shape[2:] == tuple(-(-side // 16) * 4 for side in size)

    def test_deeplabv3plus_starts_from_a_file_of_timm(self, tmp_path):
        import timm

        whole = timm.create_model("resnet18")
        torch.save(whole.state_dict(), tmp_path / "r18.pth")
        about, start = start_of("resnet18", str(tmp_path / "r18.pth"))
        model = Segmenter(SegmenterConfig(("a",), **about))
        start(model.net.core)
        assert torch.equal(model.net.core.layer3[0].conv1.weight, whole.layer3[0].conv1.weight)

    @pytest.mark.parametrize("trunk", ["resnet_of_nobody", "../x", "hf_hub:a/b", "vit"])
    def test_unknown_trunks_are_refused(self, trunk):
        with pytest.raises(WsssError, match=r"Expected (resnet38, vit|a classifier)"):
            Segmenter(SegmenterConfig(("a",), trunk))

    def test_batch_normalisation_needs_two_images(self, tmp_path, scenes, labels):
        config = config_of(scenes, "resnet18")
        chosen = options(batch_size=4, accumulate=4)
        with pytest.raises(WsssError, match="two images or more at a time"):
            train_segmenter(scenes, labels, config, chosen, tmp_path, run=QUIET)
        chosen = options(batch_size=8, crop=48)
        model, done = train_segmenter(scenes, labels, config, chosen, tmp_path, run=QUIET)
        assert done.step == 2
        again = load_segmenter(tmp_path / "last.safetensors")
        assert weights_hash(again) == weights_hash(model)
