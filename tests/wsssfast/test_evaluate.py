"""Scores against an independent implementation that follows the text of method.md §6."""

import math

import numpy as np
import pytest
from support import SHARED, folder_dataset, needs_shared

from wsssfast.data import open_dataset
from wsssfast.errors import WsssError
from wsssfast.evaluate import (
    THRESHOLDS,
    CamScorer,
    LabelScorer,
    evaluate_cams,
    evaluate_labels,
    scores,
)
from wsssfast.shards import LabelRecord, LabelShards, write_label_shard

NAMES = ("a", "b", "c", "d")


def plain_miou(images, threshold, classes):
    """mIoU of [(labels, maps, mask)] by counting pixels class by class."""
    t, p, tp = ([0] * (classes + 1) for _ in range(3))
    for labels, maps, mask in images:
        stack = np.full((classes + 1, *mask.shape), -np.inf, np.float32)
        stack[0] = np.float32(threshold)
        for k, label in enumerate(labels):
            stack[label + 1] = maps[k]
        predicted = stack.argmax(0)
        for c in range(classes + 1):
            counted = mask != 255
            t[c] += int(np.sum((mask == c) & counted))
            p[c] += int(np.sum((predicted == c) & counted))
            tp[c] += int(np.sum((predicted == c) & (mask == c)))
    iou = [tp[c] / (t[c] + p[c] - tp[c]) for c in range(classes + 1) if t[c] + p[c]]
    return math.fsum(iou) / len(iou)


def random_images(seed, count=6):
    """Maps with exact ties to thresholds and to each other, absent classes, ignored pixels."""
    rng = np.random.RandomState(seed)
    images = []
    for _ in range(count):
        labels = np.sort(rng.choice(3, size=rng.randint(0, 3), replace=False)).astype(np.int64)
        shape = (rng.randint(1, 20), rng.randint(1, 20))
        maps = np.round(rng.rand(len(labels), *shape), rng.randint(1, 4)).astype(np.float32)
        mask = rng.choice([0, 1, 2, 255], size=shape).astype(np.uint8)
        images.append((labels, maps, mask))
    return images


@pytest.mark.parametrize("seed", range(5))
def test_the_sweep_equals_counting_exactly(seed):
    images = random_images(seed)
    scorer = CamScorer(NAMES)
    for image in images:
        scorer.add(*image)
    result = scorer.result()
    assert [t for t, _ in result["curve"]] == [s / 100 for s in range(60)]
    for threshold, miou in result["curve"]:
        assert miou == plain_miou(images, threshold, len(NAMES)), threshold
    assert result["miou"] == max(miou for _, miou in result["curve"])
    assert result["threshold"] == min(t for t, m in result["curve"] if m == result["miou"])
    assert "d" in result["absent_classes"]
    assert result["images"] == 6


def test_counts_stay_exact_beyond_32_bits():
    scorer = CamScorer(("a",))
    maps, mask = np.full((1, 2, 2), 0.5, np.float32), np.array([[0, 1], [1, 255]], np.uint8)
    scorer.add(np.array([0]), maps, mask)
    scorer.truth *= 1 << 40
    scorer.seen *= 1 << 40
    t, p, tp = scorer.counts(0)
    assert (t.tolist(), p.tolist(), tp.tolist()) == ([1 << 40, 2 << 40], [0, 3 << 40], [0, 2 << 40])


def test_rates_and_absent_classes():
    t, p, tp = (np.array(x) for x in ([10, 4, 0, 0], [8, 5, 1, 0], [7, 3, 0, 0]))
    found = scores(t, p, tp, ("bg", "a", "b", "c"))
    assert found["per_class"] == {"bg": 7 / 11, "a": 3 / 6, "b": 0.0}
    assert found["absent_classes"] == ["c"]
    assert found["miou"] == math.fsum([7 / 11, 3 / 6, 0.0]) / 3
    assert found["fp"] == math.fsum([1 / 11, 2 / 6, 1.0]) / 3
    assert found["fn"] == math.fsum([3 / 11, 1 / 6, 0.0]) / 3


def test_ties_go_to_background():
    scorer = CamScorer(("a",))
    scorer.add(np.array([0]), np.full((1, 1, 1), np.float32(0.3)), np.array([[1]], np.uint8))
    curve = dict(map(tuple, scorer.result()["curve"]))
    assert curve[0.29] == 1.0
    assert curve[0.3] == 0.0


def test_masks_that_do_not_fit_are_refused():
    scorer = CamScorer(("a",))
    with pytest.raises(WsssError, match=r"size \[2, 3\], found \[3, 2\]"):
        scorer.add(np.array([0]), np.zeros((1, 2, 3), np.float32), np.zeros((3, 2), np.uint8))
    with pytest.raises(WsssError, match="up to 1 and 255, found 7"):
        scorer.add(np.array([0]), np.zeros((1, 1, 1), np.float32), np.array([[7]], np.uint8))


ONE, MASK = np.zeros((1, 1, 1), np.float32), np.zeros((1, 1), np.uint8)


@pytest.mark.parametrize(
    ("labels", "maps", "mask", "text"),
    [
        ([-1], ONE, MASK, r"labels from 0 to 1, each once, found \[-1\]"),
        ([2], ONE, MASK, r"found \[2\]"),
        ([1, 1], np.zeros((2, 1, 1), np.float32), MASK, r"found \[1, 1\]"),
        ([0, 1], ONE, MASK, "maps of 2 labels, found 1"),
        ([0], ONE * np.nan, MASK, r"in \[0, 1\], found nan"),
        ([0], ONE - 1, MASK, "found -1 to -1"),
        ([0], ONE + 255, MASK, "found 255"),
        ([0], ONE, MASK.astype(float), "array of integers"),
    ],
)  # fmt: skip
def test_what_cannot_be_counted_is_refused_and_counts_nothing(labels, maps, mask, text):
    scorer = CamScorer(("a", "b"))
    with pytest.raises(WsssError, match=text):
        scorer.add(np.array(labels), maps, mask)
    assert (scorer.images, scorer.truth.sum(), scorer.seen.sum()) == (0, 0, 0)


def test_predicted_masks_of_other_integers_count_and_others_are_refused():
    scorer = LabelScorer(("a",))
    scorer.add(np.array([[1, 255]]), np.array([[1, 0]], np.uint8))
    assert scorer.confusion().tolist() == [[1, 0], [0, 1]]
    for value in (-1, 256, 0.5):
        with pytest.raises(WsssError, match="a predicted mask"):
            scorer.add(np.array([[value]]), MASK)


@pytest.fixture
def data(tmp_path):
    return open_dataset("folder", str(folder_dataset(tmp_path / "data")))


def write_labels(folder, dataset, index, count):
    folder.mkdir(exist_ok=True)
    records = [LabelRecord.of(i.id, i.labels, dataset.load_mask(i)) for i in dataset.items[index:2]]
    identity = {"class_names": dataset.class_names}
    write_label_shard(folder, index, count, records, identity=identity)


def test_each_kind_of_shards_is_scored_by_its_own(data, tmp_path):
    write_labels(tmp_path / "labels", data, 0, 1)
    labels = LabelShards(tmp_path / "labels")
    with pytest.raises(WsssError, match="Expected CAM shards, found label shards in") as caught:
        evaluate_cams(labels, data, ["final"])
    assert "evaluate_labels LabelShards(folder)" in caught.value.remedy
    for other in (str(tmp_path / "labels"), data):
        with pytest.raises(WsssError, match=f"Expected label shards, found {type(other).__name__}"):
            evaluate_labels(other, data)


def test_missing_shards_are_in_the_result(data, tmp_path):
    write_labels(tmp_path / "labels", data, 0, 3)
    shards = LabelShards(tmp_path / "labels")
    result, failed = evaluate_labels(shards, data)
    assert (result["images"], result["missing_shards"], failed) == (2, [1, 2], {})
    assert shards.missing_names == ["labels-00001-of-00003", "labels-00002-of-00003"]


@needs_shared
def test_real_masks_equal_counting_exactly():
    dataset = open_dataset("voc", SHARED / "data/voc", "val")
    rng = np.random.RandomState(0)
    scorer, images = CamScorer(dataset.class_names), []
    for item in dataset.items[::60]:
        mask = dataset.load_mask(item)
        wrong = [c for c in range(20) if c not in item.labels][: rng.randint(2)]
        labels = np.array(sorted([*item.labels, *wrong]))
        maps = rng.rand(len(labels), *mask.shape).astype(np.float32)
        for k, label in enumerate(labels):
            maps[k] = (maps[k] + (mask == label + 1)) / 2
        images.append((labels, maps, mask))
        scorer.add(*images[-1])
    curve = scorer.result()["curve"]
    assert len(curve) == len(THRESHOLDS)
    for threshold, miou in curve[::10]:
        assert miou == plain_miou(images, threshold, 20)
