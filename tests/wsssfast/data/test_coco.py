import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from wsssfast.data import IGNORE, open_dataset
from wsssfast.data.coco import instance_mask, open_coco
from wsssfast.errors import BadFile, WsssError

CATEGORIES = [
    {"id": 90, "name": "toothbrush"},
    {"id": 1, "name": "person"},
    {"id": 13, "name": "stop sign"},
]
INDEX = {1: 0, 13: 1, 90: 2}
H, W = 4, 6


def box(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


def region(left, top, right, bottom):
    mask = np.zeros((H, W), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def runs(mask):
    """Uncompressed RLE: column by column, zeros first."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
    return {"size": list(mask.shape), "counts": np.diff(np.concatenate([[0], edges])).tolist()}


def compressed(mask):
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def annotation(number, image, category, segmentation, area, **more):
    names = ("id", "image_id", "category_id", "segmentation", "area")
    values = (number, image, category, segmentation, area)
    return {**dict(zip(names, values, strict=True)), "iscrowd": 0, **more}


ANNOTATIONS = [
    annotation(1, 9, 90, box(0, 0, 2, 2), 4.0),
    annotation(2, 9, 1, box(3, 0, 6, 4), 12.0),
    annotation(3, 7, 13, runs(region(0, 0, 6, 2)), 12, iscrowd=1),
    annotation(4, 7, 1, box(0, 0, 3, 4), 12),
]


def make_coco(root, split="train2017", prefix="", annotations=ANNOTATIONS, images=(7, 8, 9)):
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / split).mkdir()
    records = []
    for number in images:
        name = f"{prefix}{number:012d}.jpg"
        Image.fromarray(np.full((H, W, 3), number, np.uint8)).save(root / split / name)
        records.append({"id": number, "file_name": name, "height": H, "width": W})
    found = {"images": records, "annotations": annotations, "categories": CATEGORIES}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(found))
    return root


def change(root, edit, split="train2017"):
    path = root / "annotations" / f"instances_{split}.json"
    found = json.loads(path.read_text())
    edit(found)
    path.write_text(json.dumps(found))


def paint(*annotations):
    return instance_mask(annotations, INDEX, H, W).tolist()


def refusal(*args):
    with pytest.raises(WsssError) as caught:
        open_coco(*args)
    assert caught.value.code == 2
    return f"{caught.value.message} {caught.value.remedy}"


def test_classes_are_numbered_from_0_in_id_order(tmp_path):
    dataset = open_coco(make_coco(tmp_path))
    assert dataset.class_names == ("person", "stop sign", "toothbrush")
    assert {item.id: item.labels for item in dataset} == {
        "000000000007": (0, 1),
        "000000000009": (0, 2),
    }


def test_images_without_annotation_are_left_out(tmp_path):
    dataset = open_dataset("coco", make_coco(tmp_path), "train2017")
    assert [item.id for item in dataset] == ["000000000007", "000000000009"]
    assert (dataset.name, dataset.split) == ("coco", "train2017")
    assert dataset.label_source == "instances_train2017.json"


def test_an_item_gives_image_and_mask(tmp_path):
    dataset = open_coco(make_coco(tmp_path))
    item = dataset.by_id["000000000009"]
    assert dataset.image_size(item) == dataset.load_image(item).size == (W, H)
    assert dataset.load_mask(item).tolist() == [
        [3, 3, 0, 1, 1, 1],
        [3, 3, 0, 1, 1, 1],
        [0, 0, 0, 1, 1, 1],
        [0, 0, 0, 1, 1, 1],
    ]
    assert dataset.load_mask(item).dtype == np.uint8


def test_a_crowd_is_ignored_only_where_nothing_else_is(tmp_path):
    dataset = open_coco(make_coco(tmp_path))
    assert dataset.load_mask(dataset.by_id["000000000007"]).tolist() == [
        [1, 1, 1, 255, 255, 255],
        [1, 1, 1, 255, 255, 255],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
    ]


@pytest.mark.parametrize("crowd_area", [1, 10_000])
def test_a_crowd_lies_below_whatever_its_area(crowd_area):
    crowd = annotation(1, 7, 13, runs(region(0, 0, 6, 4)), crowd_area, iscrowd=1)
    found = paint(crowd, annotation(2, 7, 90, box(1, 1, 2, 2), 1))
    expected = np.full((H, W), IGNORE)
    expected[1, 1] = 3
    assert found == expected.tolist()


@pytest.mark.parametrize("encode", [runs, compressed])
def test_runs_of_both_kinds_are_decoded(encode):
    shape = np.random.RandomState(3).randint(0, 2, (H, W)).astype(np.uint8)
    assert paint(annotation(1, 7, 13, encode(shape), 5)) == (2 * shape).tolist()
    crowd = annotation(1, 7, 13, encode(shape), 5, iscrowd=1)
    assert paint(crowd) == (255 * shape.astype(int)).tolist()


def test_long_compressed_runs_are_decoded():
    shape = np.zeros((700, 900), np.uint8)
    shape[100:650, 3:880:7] = 1
    found = instance_mask([annotation(1, 7, 1, compressed(shape), 5)], INDEX, 700, 900)
    np.testing.assert_array_equal(found, shape)


@pytest.mark.parametrize("size", [(H, 2**31), (2**20, 2**20), (-1, W), (0, W), (-5, -5)])
def test_a_size_that_no_image_has_takes_no_memory(size):
    with pytest.raises(BadFile, match=f"{size[1]}x{size[0]} pixels"):
        instance_mask([], INDEX, *size)


def test_several_polygons_of_one_instance_are_joined():
    rings = box(0, 0, 1, 1) + box(5, 3, 6, 4)
    found = np.array(paint(annotation(1, 7, 1, rings, 2)))
    assert np.argwhere(found).tolist() == [[0, 0], [3, 5]]


@pytest.mark.parametrize("flip", [False, True])
def test_the_smaller_area_lies_on_top(flip):
    large = annotation(1, 7, 1, box(0, 0, 6, 4), 24)
    small = annotation(2, 7, 90, box(2, 1, 4, 3), 4)
    expected = np.ones((H, W), int)
    expected[1:3, 2:4] = 3
    assert paint(*((small, large) if flip else (large, small))) == expected.tolist()


@pytest.mark.parametrize("flip", [False, True])
def test_of_equal_areas_the_lower_id_lies_on_top(flip):
    pair = [annotation(5, 7, 1, box(0, 0, 4, 4), 9), annotation(6, 7, 90, box(2, 0, 6, 4), 9)]
    assert paint(*(reversed(pair) if flip else pair)) == [[1, 1, 1, 1, 3, 3]] * 4


def test_the_default_split_is_the_train_split_that_is_there(tmp_path):
    make_coco(tmp_path, "train2017")
    assert open_coco(tmp_path).split == "train2017"
    make_coco(tmp_path, "train2014", "COCO_train2014_")
    assert open_coco(tmp_path).split == "train2014"


def test_names_of_2014_are_kept_as_ids(tmp_path):
    make_coco(tmp_path, "val2014", "COCO_val2014_")
    dataset = open_coco(tmp_path, "val2014")
    assert [item.id for item in dataset] == [
        "COCO_val2014_000000000007",
        "COCO_val2014_000000000009",
    ]
    assert dataset.load_mask(dataset.items[1])[0].tolist() == [3, 3, 0, 1, 1, 1]


def test_a_list_picks_images_of_a_split(tmp_path):
    make_coco(tmp_path)
    path = tmp_path / "mine.txt"
    path.write_text("000000000009.jpg\n")
    dataset = open_coco(tmp_path, f"train2017:{path}")
    assert [item.id for item in dataset] == ["000000000009"]
    assert dataset.split == f"train2017:{path}"
    assert dataset.load_mask(dataset.items[0]).max() == 3


def test_a_list_of_other_images_is_refused(tmp_path):
    make_coco(tmp_path)
    path = tmp_path / "mine.txt"
    path.write_text("000000000009\n000000000010\n")
    message = refusal(tmp_path, f"train2017:{path}")
    assert f"found 000000000010 in {path}." in message and "SPLIT" not in message
    assert "--split val2017:list.txt" in message


def test_a_list_may_name_images_as_numbers_and_without_annotation(tmp_path):
    make_coco(tmp_path)
    path = tmp_path / "mine.txt"
    path.write_text("7\nCOCO_val2014_000000000009\n000000000008\n")  # 8 has no annotation
    found = open_coco(tmp_path, f"train2017:{path}")
    assert [item.id for item in found] == ["000000000007", "000000000009"]


def test_another_split_is_told_those_that_are_there(tmp_path):
    make_coco(tmp_path)
    assert "--split: annotations, train2017." in refusal(tmp_path, "minival")


def test_a_labels_file_replaces_the_labels_and_not_the_masks(tmp_path):
    make_coco(tmp_path)
    path = tmp_path / "l.json"
    path.write_text(json.dumps({f"{n:012d}": ["stop sign"] for n in (7, 8, 9)}))
    dataset = open_coco(tmp_path, None, path)
    assert [item.labels for item in dataset] == [(1,), (1,)]
    assert dataset.load_mask(dataset.items[1]).max() == 3
    assert dataset.label_source == "l.json"


def test_missing_things_are_named(tmp_path):
    assert "Expected a COCO data set (a folder)" in refusal(tmp_path / "none")
    assert "Expected annotations/instances_train2014.json or" in refusal(tmp_path)
    message = refusal(tmp_path, "val2017")
    assert f"Expected the COCO images of split 'val2017' at {tmp_path / 'val2017'}" in message
    (tmp_path / "val2017").mkdir()
    path = tmp_path / "annotations" / "instances_val2017.json"
    assert f"Expected COCO instances at {path}, found none. Check --split." in refusal(
        tmp_path, "val2017"
    )


def test_missing_images_are_named(tmp_path):
    make_coco(tmp_path)
    (tmp_path / "train2017" / "000000000009.jpg").unlink()
    message = refusal(tmp_path)
    assert f"Expected an image file in {tmp_path / 'train2017'} for 000000000009" in message


def test_an_unknown_category_is_named(tmp_path):
    make_coco(tmp_path)
    change(tmp_path, lambda found: found["annotations"][0].update(category_id=12))
    assert "Unknown category 12 in" in refusal(tmp_path)


def test_a_split_without_annotations_is_empty(tmp_path):
    make_coco(tmp_path, annotations=[])
    assert "The split 'train2017' of the coco data set is empty." in refusal(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"images": 3}'])
def test_what_are_no_instances_is_refused(tmp_path, text):
    make_coco(tmp_path)
    path = tmp_path / "annotations" / "instances_train2017.json"
    path.write_text(text)
    assert f"Expected COCO instances in {path}" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("part", "field"),
    [
        ("images", "file_name"),
        ("images", "height"),
        ("annotations", "image_id"),
        ("annotations", "segmentation"),
        ("annotations", "area"),
        ("categories", "name"),
    ],
)
def test_a_missing_field_is_named(tmp_path, part, field):
    make_coco(tmp_path)
    change(tmp_path, lambda found: found[part][-1].pop(field))
    assert f"instances_train2017.json, found no '{field}'." in refusal(tmp_path)


@pytest.mark.parametrize("part", ["images", "annotations", "categories"])
def test_a_missing_part_is_named(tmp_path, part):
    make_coco(tmp_path)
    change(tmp_path, lambda found: found.pop(part))
    assert f"instances_train2017.json, found no '{part}'." in refusal(tmp_path)


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("categories", "id", "first"),
        ("images", "id", None),
        ("images", "width", float("inf")),
        ("images", "file_name", 5),
        ("annotations", "area", "large"),
        ("annotations", "category_id", [1]),
    ],
)
def test_a_field_of_another_type_is_refused(tmp_path, part, field, value):
    make_coco(tmp_path)
    change(tmp_path, lambda found: found[part][0].update({field: value}))
    assert "Expected COCO instances in" in refusal(tmp_path)


BAD_SHAPES = {
    "no polygon": ([], "list index out of range"),
    "two numbers": ([[1, 2]], "input type is not supported"),
    "no numbers": ([["a"] * 6], "could not convert"),
    "null": (None, "not subscriptable"),
    "not a number": ([[float("nan")] * 6], "a polygon far off the image"),
    "far off": ([[1e9, 1, 2, 2, -1e9, 5]], "a polygon far off the image"),
    "too few runs": ({"size": [H, W], "counts": [3]}, "runs that do not fill the image"),
    "too many runs": ({"size": [H, W], "counts": [3, 9999]}, "runs that do not fill the image"),
    "negative runs": ({"size": [H, W], "counts": [-3, H * W + 3]}, ""),
    "no text": ({"size": [H, W], "counts": ""}, "runs that do not fill the image"),
    "cut text": ({"size": [H, W], "counts": "0"}, "runs that do not fill the image"),
    "endless text": ({"size": [H, W], "counts": "ooooo"}, "runs that do not fill the image"),
    "no size": ({"counts": [H * W]}, ""),
    "other size": ({"size": [W, H], "counts": [H * W]}, "a segmentation of size"),
    "other text": (compressed(np.ones((W, H), np.uint8)), "a segmentation of size"),
}


@pytest.mark.parametrize("name", BAD_SHAPES)
def test_a_segmentation_that_cannot_be_decoded_is_a_bad_file(tmp_path, name):
    shape, reason = BAD_SHAPES[name]
    make_coco(tmp_path, annotations=[annotation(17, 7, 1, shape, 5)])
    dataset = open_coco(tmp_path)
    with pytest.raises(BadFile) as caught:
        dataset.load_mask(dataset.items[0])
    assert reason in str(caught.value)
    assert "17" in str(caught.value) or "size" in str(caught.value)
