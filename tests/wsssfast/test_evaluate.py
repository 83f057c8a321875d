"""Scores against an independent implementation that follows the text of method.md §6."""

import math

import numpy as np
import pytest
from support import SHARED, needs_shared

from wsssfast.data import open_dataset
from wsssfast.errors import WsssError
from wsssfast.evaluate import THRESHOLDS, CamScorer, scores

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
