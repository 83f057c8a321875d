"""Masks of a segmenter: what the network says, refined, resumable, none lost."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import bytes_of, folder_dataset, tiny_config, tiny_model

from wsssfast.data import open_dataset
from wsssfast.data.unlabelled import open_unlabelled
from wsssfast.errors import WsssError
from wsssfast.kernels import Pairwise, dense_crf
from wsssfast.labels.rules import energies
from wsssfast.models.checkpoint import load_again, load_segmenter, save_model
from wsssfast.models.segmenter import Segmenter, SegmenterConfig
from wsssfast.predict import MaskMaker, PredictOptions, predict
from wsssfast.segment import SegmentOptions, probabilities
from wsssfast.shards import LabelShards
from wsssfast.shards.run import Filling

NAMES = ("cat", "dog", "cow")
SIZES = ((40, 32), (40, 32), (33, 47), (64, 24), (1, 1), (1, 50))
CRF = Pairwise(4, 3, 83, 5, 3, iterations=3)
PLAIN = PredictOptions(SegmentOptions())
REFINED = PredictOptions(SegmentOptions((0.75, 1.0), "max", flip=False), CRF)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = Segmenter(SegmenterConfig(NAMES, "vit", tiny_config(NAMES)))
        torch.nn.init.normal_(model.net.decoder.weight, std=0.5)
    path = tmp_path_factory.mktemp("c") / "s.safetensors"
    save_model(model, path)
    return path


@pytest.fixture
def dataset(tmp_path):
    return open_dataset("folder", folder_dataset(tmp_path / "data", SIZES))


@pytest.mark.parametrize("options", [PLAIN, REFINED], ids=["plain", "refined"])
def test_masks_are_what_network_and_crf_say(checkpoint, dataset, tmp_path, options):
    summary = predict(checkpoint, dataset, tmp_path / "out", options, shard_size=4)
    assert (summary.images, summary.written_shards, summary.failed) == (len(SIZES), 2, {})
    shards, model = LabelShards(tmp_path / "out"), load_segmenter(checkpoint)
    seen = set()
    for item in dataset:
        image = torch.from_numpy(np.array(dataset.load_image(item)))
        scores = probabilities(model, image, options.segment)
        if options.crf:
            (scores,) = dense_crf([image], [energies(scores)], options.crf)
        mask = shards.mask(item.id)
        assert (mask == scores.argmax(0).numpy()).all()
        assert shards.labels(item.id).tolist() == (np.unique(mask[mask > 0]) - 1).tolist()
        seen |= set(np.unique(mask).tolist())
    assert len(seen) > 2


def test_more_workers_and_processes_make_the_same_shards(checkpoint, dataset, tmp_path):
    predict(checkpoint, dataset, tmp_path / "one", PLAIN, shard_size=2)
    predict(checkpoint, dataset, tmp_path / "two", PLAIN, shard_size=2, workers=2)
    for n in (1, 0):
        summary = predict(
            checkpoint,
            dataset,
            tmp_path / "shared",
            PLAIN,
            shard_size=2,
            filling=Filling(worker=(n, 2)),
        )
    assert summary.skipped_shards + summary.written_shards == 3
    wanted = bytes_of(tmp_path / "one", "*.h5")
    assert wanted == bytes_of(tmp_path / "two", "*.h5") == bytes_of(tmp_path / "shared", "*.h5")


def test_what_cannot_be_read_is_listed_and_tried_again(checkpoint, dataset, tmp_path):
    broken = dataset.items[1].image
    whole = broken.read_bytes()
    broken.write_bytes(whole[:40])
    summary = predict(checkpoint, dataset, tmp_path / "out", PLAIN)
    assert set(summary.failed) == {dataset.items[1].id}
    assert summary.images == len(SIZES) - 1
    again = predict(checkpoint, dataset, tmp_path / "out", PLAIN)
    assert again.skipped_shards == 1 and again.failed == summary.failed
    broken.write_bytes(whole)
    mended = predict(checkpoint, dataset, tmp_path / "out", PLAIN)
    assert (mended.written_shards, mended.failed, mended.images) == (1, {}, len(SIZES))


def test_another_configuration_is_refused_there(checkpoint, dataset, tmp_path):
    predict(checkpoint, dataset, tmp_path / "out", PLAIN)
    with pytest.raises(WsssError, match="predicted"):
        predict(checkpoint, dataset, tmp_path / "out", REFINED)


def test_image_labels_are_not_needed(checkpoint, dataset, tmp_path):
    bare = open_unlabelled("folder", tmp_path / "data", None, NAMES)
    predict(checkpoint, dataset, tmp_path / "with", PLAIN)
    predict(checkpoint, bare, tmp_path / "without", PLAIN)
    with_labels, without = LabelShards(tmp_path / "with"), LabelShards(tmp_path / "without")
    assert all((with_labels.mask(i.id) == without.mask(i.id)).all() for i in dataset)


def test_wrong_checkpoints_are_refused(checkpoint, dataset, tmp_path):
    save_model(tiny_model(classes=NAMES), tmp_path / "c.safetensors")
    with pytest.raises(WsssError, match=r"segmenter checkpoint .* 'classifier'"):
        predict(tmp_path / "c.safetensors", dataset, tmp_path / "out", PLAIN)
    other = replace(dataset, class_names=("cat", "dog", "cow", "yak"))
    with pytest.raises(WsssError, match="the data set's 4 classes, found one of 3"):
        predict(checkpoint, other, tmp_path / "out", PLAIN)
    with pytest.raises(WsssError, match="one process on a GPU"):
        predict(checkpoint, dataset, tmp_path / "out", PLAIN, workers=0)


def test_weights_that_change_meanwhile_are_refused(checkpoint, tmp_path):
    shutil.copy(checkpoint, tmp_path / "s.safetensors")
    with pytest.raises(WsssError, match="stay as they were when this run began"):
        load_again(load_segmenter, tmp_path / "s.safetensors", "another hash", "cpu")


def test_what_does_not_fit_the_memory_is_listed(checkpoint, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("wsssfast.predict.usable_memory", lambda device: 1_000_000)
    summary = predict(checkpoint, dataset, tmp_path / "out", PLAIN)
    assert {reason.partition(" pixels")[0] for reason in summary.failed.values()} == {
        "40x32", "33x47", "64x24"
    }  # fmt: skip
    assert summary.images == 2


def test_running_out_of_memory_is_told_of_the_image_alone(checkpoint, dataset, monkeypatch):
    maker = MaskMaker(checkpoint, "", dataset, PLAIN, device="cuda")
    assert [len(batch) for batch in maker.batches(dataset.items)] == [4, 2]

    monkeypatch.setattr("wsssfast.predict.usable_memory", lambda device: 1 << 40)

    def scarce(self, item, image):
        if image.shape[0] == 32:
            raise MemoryError
        return item.id

    monkeypatch.setattr(MaskMaker, "_record", scarce)
    found = maker(dataset.items[:4])
    assert found == [
        "not enough memory for 40x32 pixels", "not enough memory for 40x32 pixels", "im2", "im3"
    ]  # fmt: skip
