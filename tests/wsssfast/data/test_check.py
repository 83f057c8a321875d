import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import folder_dataset

from wsssfast.data import open_dataset
from wsssfast.data.check import check_dataset
from wsssfast.data.folder import open_folder

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
real_data = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"the real VOC and COCO images of {SHARED} are not here"
)

IMAGES = {
    # name: (labels, width, height, mask values or None)
    "a.png": ("cat;dog", 6, 4, [0, 1, 2, 255]),
    "b.png": ("cat", 8, 4, [0, 1]),
    "c.png": ("dog", 6, 5, [0, 1]),  # another class in the mask
    "d.png": ("", 5, 9, None),
    "e.png": ("cow;dog;cat", 6, 4, None),
}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    rows = ["image,labels"]
    for name, (labels, width, height, values) in IMAGES.items():
        Image.new("RGB", (width, height)).save(tmp_path / "images" / name)
        rows.append(f"{name},{labels}")
        if values:
            mask = np.resize(np.array(values, np.uint8), (height, width))
            Image.fromarray(mask).save(tmp_path / "masks" / name)
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    (tmp_path / "classes.txt").write_text("cat\ndog\ncow\nhorse\n")
    return tmp_path


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("workers", [1, 3])
def test_everything_is_counted(root, decode, workers):
    steps = []
    report = check_dataset(open_folder(root), decode=decode, workers=workers, progress=steps.append)
    assert steps == [1, 1, 1, 1, 1]
    assert (report.images, report.masks) == (5, 3)
    assert report.label_counts == {"cat": 3, "dog": 3, "cow": 1, "horse": 0}
    assert report.mask_counts == {"cat": 3, "dog": 1, "cow": 0, "horse": 0}
    assert (report.multi_label, report.unlabelled) == (2, 1)
    assert (len(report.disagreements), report.with_ignore) == (1, 1)
    sizes = {"min_width": 5, "max_width": 8, "min_height": 4, "max_height": 9}
    assert report.sizes == sizes
    assert (report.unreadable, report.problems) == ({}, [])


def test_a_mask_of_another_size_is_a_problem(root):
    Image.new("L", (4, 6)).save(root / "masks" / "b.png")
    report = check_dataset(open_folder(root))
    assert report.problems == ["b: image of 8x4 pixels, mask of 4x6"]
    assert report.masks == 3


def test_a_mask_value_beyond_the_classes_is_a_problem(root):
    Image.new("L", (8, 4), 5).save(root / "masks" / "b.png")
    report = check_dataset(open_folder(root))
    assert report.problems == ["b: mask value 5, expected at most 4 or 255"]
    assert len(report.disagreements) == 2
    assert report.mask_counts == {"cat": 2, "dog": 1, "cow": 0, "horse": 0}


def test_unreadable_images_and_masks_are_listed_and_the_rest_is_counted(root):
    (root / "images" / "a.png").write_bytes(b"")
    (root / "masks" / "b.png").write_text("no image")
    Image.new("RGB", (6, 5)).save(root / "masks" / "c.png")
    report = check_dataset(open_folder(root))
    assert list(report.unreadable) == ["a", "b", "c"]
    assert report.unreadable["a"].startswith("UnidentifiedImageError: ")
    assert report.unreadable["b"].startswith("mask: UnidentifiedImageError: ")
    assert report.unreadable["c"].startswith("mask: expected a palette or 8-bit grey mask")
    assert (report.images, report.masks) == (5, 1)
    assert report.label_counts["cat"] == 3
    assert report.problems == []


def test_only_decoding_finds_what_is_cut_off(root):
    path = root / "images" / "b.png"
    noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path.with_suffix(".jpg"))
    path.write_bytes(path.with_suffix(".jpg").read_bytes()[:2000])
    path.with_suffix(".jpg").unlink()
    assert list(check_dataset(open_folder(root)).unreadable) == ["b"]
    report = check_dataset(open_folder(root), decode=False)
    assert report.unreadable == {}
    assert report.problems == ["b: image of 64x64 pixels, mask of 8x4"]


def test_an_image_of_one_shade_is_noted(root):
    rng = np.random.RandomState(0)
    for name in "abcde":
        path = next((root / "images").glob(f"{name}.*"))
        Image.fromarray(rng.randint(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    assert not [note for note in check_dataset(open_folder(root)).notes if "shade" in note]
    Image.fromarray(rng.randint(0, 4096, (64, 64)).astype(np.uint16)).save(path)  # 12 bits
    note = "1 of the images look black, white or of one shade all over"
    assert note in check_dataset(open_folder(root)).notes[-1]


def voc_table():
    """(train_aug label, train_aug mask, val label, val mask) of each class in the README."""
    row = re.compile(r"^\| \d+ (\w+) \| (\d+) of \d+ \| (\d+) \| (\d+) of \d+ \| (\d+) \|$", re.M)
    found = row.findall((SHARED / "voc" / "README.md").read_text(encoding="utf-8"))
    return {name: tuple(map(int, counts)) for name, *counts in found}


@real_data
@pytest.mark.parametrize(
    ("split", "column", "images", "multi_label", "disagreements", "with_ignore"),
    [("train_aug", 0, 3131, 1039, 190, 437), ("val", 2, 725, 263, 0, 725)],
)
def test_real_voc_has_the_published_counts(
    split, column, images, multi_label, disagreements, with_ignore
):
    dataset = open_dataset("voc", SHARED / "voc", split)
    report = check_dataset(dataset, decode=False)
    table = voc_table()
    assert list(table) == list(dataset.class_names)
    assert report.label_counts == {name: row[column] for name, row in table.items()}
    assert report.mask_counts == {name: row[column + 1] for name, row in table.items()}
    assert (report.images, report.masks) == (images, images)
    assert (report.multi_label, report.unlabelled) == (multi_label, 0)
    assert len(report.disagreements) == disagreements
    assert report.with_ignore == with_ignore
    assert (report.unreadable, report.problems) == ({}, [])
    assert min(report.sizes["min_width"], report.sizes["min_height"]) <= 304


def coco_counts():
    """(train2017, val2017) images of each category in the README."""
    text = (SHARED / "coco" / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^Images per category \(train2017/val2017\): (.+)\.$", text, re.M)
    parts = (part.rpartition(" ") for part in line.split(", "))
    return {name: tuple(map(int, counts.split("/"))) for name, _, counts in parts}


@real_data
@pytest.mark.parametrize(
    ("split", "column", "images"), [("train2017", 0, 129), ("val2017", 1, 126)]
)
def test_real_coco_has_the_published_counts(split, column, images):
    dataset = open_dataset("coco", SHARED / "coco", split)
    report = check_dataset(dataset, decode=False)
    counts = coco_counts()
    assert list(counts) == list(dataset.class_names)
    assert len(counts) == 80
    assert report.label_counts == {name: row[column] for name, row in counts.items()}
    assert (report.images, report.masks, report.unlabelled) == (images, images, 0)
    assert (report.unreadable, report.problems) == ({}, [])


def test_what_looks_like_a_mistake_is_noted(tmp_path):
    root = folder_dataset(tmp_path / "d")
    (root / "classes.txt").unlink()
    (root / "images" / "photo.HEIC").write_bytes(b"x")
    (root / "labels.csv").write_text(
        'image,labels\nim0.png,cat\nim1.png,Cat\nim2.png,Cat\nim3.png,"cat;dog, cow"\n'
    )
    notes = check_dataset(open_dataset("folder", root)).notes
    assert notes == [
        "not read as images: photo.HEIC",
        "the classes 'Cat' and 'cat' differ in case only",
        "the class 'dog, cow' has a comma: labels are separated by ;",
        "a single image has the class dog, cow: check how it is spelled",
    ]
    (root / "labels.csv").write_text(
        "image,labels\n" + "".join(f"im{n}.png,cat\n" for n in range(4))
    )
    (root / "classes.txt").write_text("cat\nyak\n")
    notes = check_dataset(open_dataset("folder", root)).notes
    assert notes == ["not read as images: photo.HEIC", "no image has the class yak"]
