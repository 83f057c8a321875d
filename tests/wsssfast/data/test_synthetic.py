import numpy as np
import pytest

from wsssfast.data import open_dataset
from wsssfast.data.folder import open_folder
from wsssfast.data.synthetic import (
    CLASS_NAMES,
    SIZES,
    labels_of,
    open_synthetic,
    scene,
    write_folder,
)
from wsssfast.errors import WsssError


def refusal(function, *args):
    with pytest.raises(WsssError) as caught:
        function(*args)
    assert caught.value.code == 2
    return f"{caught.value.message} {caught.value.remedy}"


def test_a_scene_is_the_same_each_time():
    (image, mask), (again, mask_again) = scene("train", 5), scene("train", 5)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(mask, mask_again)


def test_a_scene_is_the_same_whatever_was_made_before():
    expected = scene("val", 3)[0]
    np.random.seed(1)
    scene("val", 2)
    np.testing.assert_array_equal(scene("val", 3)[0], expected)
    dataset = open_synthetic("val:4")
    np.testing.assert_array_equal(np.asarray(dataset.load_image(dataset.items[3])), expected)


def test_splits_differ():
    assert not np.array_equal(scene("train", 1)[1], scene("val", 1)[1])


@pytest.mark.parametrize(
    ("split", "labels"),
    [
        ("train", [(5,), (3, 7), (2, 6, 7), (2, 6, 7), (0, 2), (0, 5, 7)]),
        ("val", [(0, 2, 6), (1, 6), (6,), (5, 7), (3,), (1, 4)]),
    ],
)
def test_the_first_scenes_are_the_known_ones(split, labels):
    assert [labels_of(split, n) for n in range(6)] == labels
    assert [item.labels for item in open_synthetic(f"{split}:6")] == labels


def test_the_first_scene_has_the_known_size():
    assert scene("train", 0)[1].shape == (128, 128)
    assert scene("val", 0)[1].shape == (144, 112)


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_class_occurs_in_the_first_50_scenes(split):
    items = open_synthetic(f"{split}:50")
    assert {c for item in items for c in item.labels} == set(range(8))


@pytest.mark.parametrize("index", range(12))
def test_masks_hold_classes_and_seams_and_have_the_images_size(index):
    image, mask = scene("train", index)
    assert image.dtype == mask.dtype == np.uint8
    assert mask.shape in SIZES
    assert image.shape == (*mask.shape, 3)
    values = set(np.unique(mask).tolist())
    assert {0, 255} < values <= {*range(9), 255}


@pytest.mark.parametrize("index", range(12))
def test_the_labels_are_the_classes_of_the_mask(index):
    values = np.unique(scene("val", index)[1]).tolist()
    assert labels_of("val", index) == tuple(v - 1 for v in values if v not in (0, 255))


@pytest.mark.parametrize("index", range(6))
def test_a_seam_parts_whatever_differs(index):
    mask = scene("train", index)[1].astype(int)
    for a, b in ((mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1])):
        assert not ((a != b) & (a != 255) & (b != 255)).any()


def test_the_index_agrees_with_the_scenes():
    dataset = open_dataset("synthetic", split="val:5")
    assert dataset.class_names == CLASS_NAMES
    assert [item.id for item in dataset] == [f"val_{n:05d}" for n in range(5)]
    assert (dataset.name, dataset.split, dataset.label_source) == ("synthetic", "val:5", "embedded")
    for n, item in enumerate(dataset):
        image, mask = scene("val", n)
        assert dataset.image_size(item) == mask.shape[::-1]
        np.testing.assert_array_equal(np.asarray(dataset.load_image(item)), image)
        np.testing.assert_array_equal(dataset.load_mask(item), mask)


def test_a_longer_split_starts_with_the_shorter_one():
    assert open_synthetic("val:8").items[:5] == open_synthetic("val:5").items


@pytest.mark.slow
def test_the_splits_have_600_and_200_scenes_each_with_a_label():
    train, val = open_synthetic(), open_synthetic("val")
    assert (train.split, len(train)) == ("train:600", 600)
    assert (val.split, len(val)) == ("val:200", 200)
    assert all(item.labels for item in (*train, *val))


@pytest.mark.parametrize("split", ["test", "train:x", "train:-1", "train:²", ":5", "train:1:2"])
def test_another_split_is_refused(split):
    message = refusal(open_synthetic, split)
    assert "Expected the split train or val of the synthetic data set" in message
    assert f"found {split!r}." in message


def test_counts_of_nothing_and_of_too_much_are_refused():
    assert "is empty" in refusal(open_synthetic, "train:0")
    assert "Expected at most 100000 scenes, found 100001." in refusal(
        open_synthetic, "train:100001"
    )


def test_a_root_or_labels_are_refused(tmp_path):
    text = "Expected no --data-root and no --labels"
    assert text in refusal(open_dataset, "synthetic", tmp_path)
    assert text in refusal(open_dataset, "synthetic", None, None, tmp_path / "l.csv")


def test_a_written_folder_reads_as_the_same_data_set(tmp_path):
    made = open_synthetic("train:6")
    write_folder(made, tmp_path / "out")
    read = open_folder(tmp_path / "out")
    assert read.class_names == made.class_names
    assert read.fingerprint == made.fingerprint
    assert [(i.id, i.labels) for i in read] == [(i.id, i.labels) for i in made]
    for a, b in zip(made, read, strict=True):
        assert made.image_size(a) == read.image_size(b)
        np.testing.assert_array_equal(made.load_image(a), read.load_image(b))
        np.testing.assert_array_equal(made.load_mask(a), read.load_mask(b))


def test_a_folder_that_holds_something_is_not_written_to(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    message = refusal(write_folder, open_synthetic("train:1"), tmp_path)
    assert f"Expected an empty or new folder, found files at {tmp_path}." in message
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert "empty or new folder" in refusal(
        write_folder, open_synthetic("train:1"), tmp_path / "mine.txt"
    )


@pytest.mark.parametrize(
    ("split", "fingerprint", "mean", "deviations", "seams"),
    [
        ("train", "04d1f97de7a41870", 124.451, (38.512, 35.036, 39.407), 2922),
        ("val", "568b687a08ab7480", 131.709, (37.309, 42.138, 40.381), 3014),
    ],
)
def test_the_generator_is_frozen(split, fingerprint, mean, deviations, seams):
    """The demo was tuned on these scenes: a change of the generator is another data set."""
    assert open_synthetic(f"{split}:60").fingerprint.startswith(fingerprint)
    scenes = [scene(split, n) for n in range(8)]
    assert np.mean([image.mean() for image, _ in scenes]) == pytest.approx(mean, abs=0.01)
    found = np.mean([image.astype(float).std((0, 1)) for image, _ in scenes], axis=0)
    assert found == pytest.approx(deviations, abs=0.01)
    assert sum(int((mask == 255).sum()) for _, mask in scenes) == pytest.approx(seams, abs=8)
