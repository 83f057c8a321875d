"""Images without labels, in each layout."""

import pytest
from PIL import Image
from support import folder_dataset

from wsssfast.data.unlabelled import open_unlabelled
from wsssfast.data.voc import CLASS_NAMES
from wsssfast.errors import WsssError

NAMES = ("cat", "dog")


def images(folder, *names):
    folder.mkdir(parents=True)
    for name in names:
        Image.new("RGB", (5, 4)).save(folder / name)


def test_voc_needs_images_and_a_list_alone(tmp_path):
    images(tmp_path / "VOC2012" / "JPEGImages", "b.jpg", "a.jpg", "c.jpg")
    lists = tmp_path / "VOC2012" / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "test.txt").write_text("b\na\n")
    found = open_unlabelled("voc", tmp_path, "test", CLASS_NAMES)
    assert [(item.id, item.labels) for item in found] == [("a", ()), ("b", ())]
    assert found.load_image(found.items[0]).size == (5, 4)


def test_coco_needs_a_folder_of_images_alone(tmp_path):
    images(tmp_path / "test2014", "2.jpg", "1.jpg")
    (tmp_path / "test2014" / "readme.txt").write_text("no image")
    found = open_unlabelled("coco", tmp_path, "test2014", NAMES)
    assert ([item.id for item in found], found.class_names) == (["1", "2"], NAMES)
    (tmp_path / "list.txt").write_text("2\n")
    split = f"test2014:{tmp_path}/list.txt"
    assert [item.id for item in open_unlabelled("coco", tmp_path, split, NAMES)] == ["2"]
    (tmp_path / "list.txt").write_text("2\n3\n")
    with pytest.raises(WsssError, match="for 3, found none"):
        open_unlabelled("coco", tmp_path, split, NAMES)
    with pytest.raises(WsssError, match="--split"):
        open_unlabelled("coco", tmp_path, None, NAMES)


def test_a_folder_needs_no_labels(tmp_path):
    root = folder_dataset(tmp_path / "data")
    (root / "labels.csv").unlink()
    (root / "classes.txt").unlink()
    found = open_unlabelled("folder", root, None, NAMES)
    assert [item.id for item in found] == ["im0", "im1", "im2", "im3"]
    (tmp_path / "some.txt").write_text("im2.png\n")
    found = open_unlabelled("folder", root, str(tmp_path / "some.txt"), NAMES)
    assert [item.id for item in found] == ["im2"]


def test_the_synthetic_scenes_forget_their_labels():
    found = open_unlabelled("synthetic", None, "val:3", NAMES)
    assert [item.labels for item in found] == [(), (), ()] and found.class_names == NAMES


@pytest.mark.parametrize("kind", ["voc", "coco", "folder"])
def test_the_folder_must_be_given(kind):
    with pytest.raises(WsssError, match="--data-root"):
        open_unlabelled(kind, None, "x", NAMES)
