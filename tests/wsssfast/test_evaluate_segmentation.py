"""Scores of predicted masks against independent ways to compute them."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_erosion
from sklearn.metrics import confusion_matrix, jaccard_score
from support import as_labels, folder_dataset

from wsssfast.convert_labels import to_png
from wsssfast.data import open_dataset
from wsssfast.errors import WsssError
from wsssfast.evaluate.segmentation import (
    BoundaryScorer,
    PngMasks,
    band,
    evaluate_segmentation,
    open_predicted,
)
from wsssfast.report.segmentation import write_segmentation_report

NAMES = ("background", "cat", "dog", "cow")
SIZES = ((40, 32), (60, 52), (33, 47), (64, 24))


@pytest.fixture
def dataset(tmp_path):
    return open_dataset("folder", folder_dataset(tmp_path / "data", SIZES))


def smudged(dataset):
    """The data set with other masks: its own, moved and with some classes swapped."""

    def mask(item):
        found = np.roll(dataset.load_mask(item), 3, axis=1)
        found[found == 255] = 0
        found[:5][found[:5] == 2] = 3
        return found

    return replace(dataset, load_mask=mask)


@pytest.fixture
def predicted(dataset, tmp_path):
    return as_labels(tmp_path / "labels", smudged(dataset))


def all_pixels(dataset, predicted):
    """(truth, prediction) of every pixel whose truth is known."""
    pairs = [(dataset.load_mask(i).ravel(), predicted.mask(i.id).ravel()) for i in dataset]
    truth, found = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return truth[truth != 255], found[truth != 255]


def test_scores_are_those_of_scikit_learn(dataset, predicted):
    result, images, failed = evaluate_segmentation(predicted, dataset)
    truth, found = all_pixels(dataset, predicted)
    matrix = confusion_matrix(truth, found, labels=range(4))
    assert result["confusion"] == matrix.tolist() and failed == {}
    each = jaccard_score(truth, found, labels=range(4), average=None)
    assert result["per_class"] == pytest.approx(dict(zip(NAMES, each, strict=True)))
    assert result["miou"] == pytest.approx(each.mean())
    assert result["pixel_accuracy"] == pytest.approx((truth == found).mean())
    right = matrix.diagonal() / matrix.sum(1)
    assert result["per_class_accuracy"] == pytest.approx(dict(zip(NAMES, right, strict=True)))
    assert result["mean_accuracy"] == pytest.approx(right.mean())
    assert [one.id for one in images] == [item.id for item in dataset]
    for one in images:
        item = dataset.by_id[one.id]
        known = dataset.load_mask(item) != 255
        pair = dataset.load_mask(item)[known], predicted.mask(one.id)[known]
        labels = sorted(set(np.unique(pair)))
        alone = jaccard_score(*pair, labels=labels, average="macro")
        assert one.miou == pytest.approx(alone)


def test_means_over_some_classes(dataset, predicted):
    whole, _, _ = evaluate_segmentation(predicted, dataset)
    some, _, _ = evaluate_segmentation(predicted, dataset, ["cow", "cat"])
    assert list(some["per_class"]) == ["background", "cat", "cow"]
    wanted = np.mean([whole["per_class"][name] for name in some["per_class"]])
    assert some["miou"] == pytest.approx(wanted)
    assert some["confusion"] == whole["confusion"]
    matrix = np.array(whole["confusion"])[[0, 1, 3]]
    assert some["pixel_accuracy"] == pytest.approx(
        (matrix[0, 0] + matrix[1, 1] + matrix[2, 3]) / matrix.sum()
    )
    with pytest.raises(WsssError, match=r"classes of the data set, found yak"):
        evaluate_segmentation(predicted, dataset, ["cat", "yak"])


def eroded(region, width):
    """The band of Cheng et al.'s reference: a region less its erosion, in steps of 3 x 3."""
    inner = binary_erosion(region, np.ones((3, 3)), iterations=width, border_value=0)
    return region & ~inner


@pytest.mark.parametrize("width", [1, 2, 5])
def test_bands_are_a_region_less_its_erosion(width):
    rng = np.random.RandomState(0)
    for _ in range(20):
        coarse = rng.rand(5, 6) < 0.5
        region = np.repeat(np.repeat(coarse, 7, 0), 9, 1)
        assert (band(region, width) == eroded(region, width)).all()
    assert not band(np.zeros((4, 5), bool), width).any()


def test_boundary_iou_is_that_of_the_reference(dataset, predicted):
    result, _, _ = evaluate_segmentation(predicted, dataset)
    both, either = np.zeros(4), np.zeros(4)
    for item in dataset:
        truth, found = dataset.load_mask(item), predicted.mask(item.id)
        known = truth != 255
        filled = np.where(known, truth, found)
        width = max(1, round(0.02 * np.hypot(*truth.shape)))
        for c in (1, 2, 3):
            one, other = (eroded(m == c, width) & known for m in (found, filled))
            both[c] += (one & other).sum()
            either[c] += (one | other).sum()
    wanted = {NAMES[c]: both[c] / either[c] for c in (1, 2, 3)}
    assert result["per_class_boundary"] == pytest.approx(wanted)
    assert result["boundary_miou"] == pytest.approx(np.mean(list(wanted.values())))


def test_a_perfect_mask_has_perfect_boundaries(dataset):
    scorer = BoundaryScorer(4)
    for item in dataset:
        mask = dataset.load_mask(item)
        scorer.add(np.where(mask == 255, 1, mask), mask)
    assert set(scorer.result(NAMES).values()) == {1.0}


def test_a_folder_of_png_masks_scores_alike(dataset, predicted, tmp_path):
    to_png(predicted, tmp_path / "png", lambda count: None)
    (tmp_path / "png" / "stranger.png").write_bytes(b"")
    masks = open_predicted(tmp_path / "png", dataset)
    assert isinstance(masks, PngMasks)
    of_png, of_shards = (evaluate_segmentation(m, dataset)[0] for m in (masks, predicted))
    assert of_png == of_shards
    (tmp_path / "png" / "im0.png").write_bytes(b"nothing")
    _, images, failed = evaluate_segmentation(masks, dataset)
    assert set(failed) == {"im0"} and len(images) == 3
    (tmp_path / "odd").mkdir()
    Image.new("L", (3, 3)).save(tmp_path / "odd" / "other.png")
    with pytest.raises(
        WsssError, match=r"PNG masks of the data set's images in .*, found 1 others"
    ):
        open_predicted(tmp_path / "odd", dataset)
    with pytest.raises(WsssError, match=r"PNG masks .*, found none"):
        open_predicted(tmp_path / "nowhere", dataset)
    (predicted.folder / "plot.png").write_bytes(b"")
    assert open_predicted(predicted.folder, dataset).ids == predicted.ids


def test_masks_that_do_not_fit_are_listed(dataset, predicted, tmp_path):
    def cut(item):
        mask = dataset.load_mask(item)
        return mask[1:] if item.id in ("im0", "im2") else mask

    result, images, failed = evaluate_segmentation(predicted, replace(dataset, load_mask=cut))
    assert failed == {
        "im0": "prediction: 40x32 pixels, the true mask has 40x31",
        "im2": "prediction: 33x47 pixels, the true mask has 33x46",
    }
    assert result["images"] == len(images) == 2
    with pytest.raises(WsssError, match=r"found none for 4 images. im0: prediction: "):
        evaluate_segmentation(
            predicted, replace(dataset, load_mask=lambda item: dataset.load_mask(item)[1:])
        )
    to_png(predicted, tmp_path / "png", lambda count: None)
    Image.new("L", (40, 32), 7).save(tmp_path / "png" / "im0.png")
    _, _, failed = evaluate_segmentation(open_predicted(tmp_path / "png", dataset), dataset)
    assert failed == {"im0": "prediction: values up to 3 and 255 expected, found 7"}


def test_the_page_shows_the_best_and_the_worst(dataset, predicted, tmp_path):
    scored = evaluate_segmentation(predicted, dataset)
    out = tmp_path / "deep" / "page.html"
    shown = write_segmentation_report(out, predicted, dataset, *scored, 2)
    order = sorted(scored[1], key=lambda one: -one.miou)
    assert shown == (order[0].id, order[-1].id)
    text = out.read_text()
    assert f"{100 * scored[0]['miou']:.2f} %" in text and "Most confused" in text
    assert text.count("<img") == 6 and "<script" not in text
    first = out.read_bytes()
    assert write_segmentation_report(out, predicted, dataset, *scored, 2) == shown
    assert out.read_bytes() == first
    everything = write_segmentation_report(out, predicted, dataset, *scored, 99)
    assert sorted(everything) == [item.id for item in dataset]
