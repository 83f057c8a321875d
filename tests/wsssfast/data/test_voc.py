import json

import numpy as np
import pytest
from PIL import Image

from wsssfast.data import open_dataset
from wsssfast.data.voc import CLASS_NAMES, open_voc
from wsssfast.errors import BadFile, WsssError

OBJECTS = {
    "2007_01": ["person", "dog", "person"],
    "2007_02": ["aeroplane"],
    "2007_03": ["tvmonitor", "cat"],
    "2007_04": [],
}
LABELS = {"2007_01": (11, 14), "2007_02": (0,), "2007_03": (7, 19), "2007_04": ()}
MASKS = {"2007_01": [[0, 12], [15, 255]], "2007_02": [[1, 0], [0, 0]], "2007_03": [[20, 8], [0, 0]]}


def xml(names):
    objects = "".join(
        f"<object><name>{n}</name><bndbox><xmin>1</xmin></bndbox>"
        "<part><name>head</name></part></object>"
        for n in names
    )
    return f"<annotation><folder>VOC2012</folder>{objects}</annotation>"


def make_voc(root, annotations=True):
    for name in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    for n, image_id in enumerate(OBJECTS):
        image = Image.fromarray(np.full((6, 8 + n, 3), 40 * n, np.uint8))
        image.save(root / "JPEGImages" / f"{image_id}.jpg")
    for image_id, values in MASKS.items():
        mask = Image.fromarray(np.array(values, np.uint8))
        mask.save(root / "SegmentationClassAug" / f"{image_id}.png")
    if annotations:
        (root / "Annotations").mkdir()
        for image_id, names in OBJECTS.items():
            (root / "Annotations" / f"{image_id}.xml").write_text(xml(names))
    write_list(root, "train", "2007_03\n2007_01\n")
    write_list(root, "val", "2007_02\n")
    return root


def write_list(root, name, text):
    (root / "ImageSets" / "Segmentation" / f"{name}.txt").write_text(text)


@pytest.fixture
def root(tmp_path):
    return make_voc(tmp_path / "VOC2012")


def ids_of(dataset):
    return [item.id for item in dataset]


def refusal(*args):
    with pytest.raises(WsssError) as caught:
        open_voc(*args)
    assert caught.value.code == 2
    return f"{caught.value.message} {caught.value.remedy}"


def test_labels_are_the_classes_of_the_annotated_objects(root):
    write_list(root, "all", "\n".join(OBJECTS))
    dataset = open_voc(root, "all")
    assert {item.id: item.labels for item in dataset} == LABELS
    assert dataset.label_source == "Annotations/*.xml"
    assert dataset.class_names == CLASS_NAMES
    assert (dataset.name, dataset.split, len(dataset)) == ("voc", "all", 4)
    assert CLASS_NAMES[14] == "person"


def test_items_are_sorted_and_give_image_and_mask(root):
    dataset = open_voc(root, "train")
    assert ids_of(dataset) == ["2007_01", "2007_03"]
    item = dataset.by_id["2007_03"]
    assert dataset.image_size(item) == dataset.load_image(item).size == (10, 6)
    assert dataset.load_mask(item).tolist() == MASKS["2007_03"]


def test_an_image_without_mask_has_none(root):
    write_list(root, "four", "2007_04\n")
    dataset = open_voc(root, "four")
    assert dataset.items[0].mask is None
    assert dataset.load_mask(dataset.items[0]) is None


def test_masks_of_segmentation_class_serve_where_the_augmented_are_missing(root):
    (root / "SegmentationClass").mkdir()
    for image_id in ("2007_01", "2007_04"):
        mask = Image.fromarray(np.full((2, 2), 9, np.uint8))
        mask.save(root / "SegmentationClass" / f"{image_id}.png")
    write_list(root, "both", "2007_01\n2007_04\n")
    dataset = open_voc(root, "both")
    assert dataset.load_mask(dataset.by_id["2007_01"]).tolist() == MASKS["2007_01"]
    assert dataset.load_mask(dataset.by_id["2007_04"]).tolist() == [[9, 9], [9, 9]]


@pytest.mark.parametrize("above", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_the_root_may_be_a_parent(tmp_path, above):
    make_voc(tmp_path / "data" / above)
    assert ids_of(open_voc(tmp_path / "data", "val")) == ["2007_02"]
    assert ids_of(open_dataset("voc", tmp_path / "data", "val")) == ["2007_02"]


def test_train_aug_is_made_of_the_masks_where_it_has_no_list(root):
    dataset = open_voc(root)
    assert dataset.split == "train_aug"
    assert ids_of(dataset) == ["2007_01", "2007_03"]


def test_a_train_aug_list_comes_first(root):
    write_list(root, "train_aug", "2007_04\n")
    assert ids_of(open_voc(root)) == ["2007_04"]


def test_train_aug_without_list_masks_or_val_is_refused(root):
    (root / "ImageSets" / "Segmentation" / "val.txt").unlink()
    assert "Expected the split 'train_aug'" in refusal(root)


def test_psa_style_lists_are_read(root):
    lines = [f"/JPEGImages/{i}.jpg /SegmentationClassAug/{i}.png" for i in ("2007_02", "2007_01")]
    write_list(root, "psa", "\n".join([*lines, "", "2007_03.jpg", "2007_04 -1"]))
    assert ids_of(open_voc(root, "psa")) == ["2007_01", "2007_02", "2007_03", "2007_04"]


def test_a_split_may_be_the_path_of_a_list(root, tmp_path):
    path = tmp_path / "mine.lst"
    path.write_text("\ufeff2007_04\r\n2007_02\r\n", encoding="utf-8")
    dataset = open_voc(root, str(path))
    assert ids_of(dataset) == ["2007_02", "2007_04"]
    assert dataset.split == str(path)


def test_labels_json_beside_the_images_serves_without_annotations(tmp_path):
    root = make_voc(tmp_path / "voc", annotations=False)
    (root / "labels.json").write_text(json.dumps({i: ["cow"] for i in OBJECTS}))
    dataset = open_voc(root, "train")
    assert [item.labels for item in dataset] == [(9,), (9,)]
    assert dataset.label_source == "labels.json"


def test_cls_labels_npy_beside_the_images_serves_without_annotations(tmp_path):
    root = make_voc(tmp_path / "voc", annotations=False)
    np.save(root / "cls_labels.npy", {i: np.eye(20)[16] for i in OBJECTS})
    dataset = open_voc(root, "val")
    assert [item.labels for item in dataset] == [(16,)]
    assert dataset.label_source == "cls_labels.npy"


def test_annotations_come_before_labels_beside_the_images(root):
    (root / "labels.json").write_text("{}")
    assert open_voc(root, "val").items[0].labels == (0,)


def test_a_named_labels_file_comes_before_annotations(root, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("image,labels\n2007_02.jpg,sofa;bus\n2007_03.jpg,\n")
    dataset = open_voc(root, "val", path)
    assert [item.labels for item in dataset] == [(5, 17)]
    assert dataset.label_source == "mine.csv"


def test_a_labels_file_of_other_images_is_refused(root, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("image,labels\n2007_02.jpg,sofa\n2012_99.jpg,bus\n")
    assert "found the unknown id 2012_99" in refusal(root, "val", path)
    assert "found none for 2007_01, 2007_03" in refusal(root, "train", path)


def test_no_labels_at_all_are_refused(tmp_path):
    root = make_voc(tmp_path / "voc", annotations=False)
    message = refusal(root, "val")
    assert f"Expected image labels in {root / 'Annotations'}, found none." in message
    assert "--labels" in message


def test_a_missing_annotation_is_named(root):
    (root / "Annotations" / "2007_02.xml").unlink()
    message = refusal(root, "val")
    assert f"Expected a VOC annotation at {root / 'Annotations' / '2007_02.xml'}" in message


def test_an_unknown_class_is_named(root):
    (root / "Annotations" / "2007_02.xml").write_text(xml(["person", "unicorn"]))
    assert "Unknown class 'unicorn' in" in refusal(root, "val")


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f'<!DOCTYPE a [<!ENTITY l0 "ha">{LAUGHS}]><annotation>&l11;</annotation>', "EntitiesForb"),
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "SECRET">]><annotation>&x;</annotation>', "EntitiesForb"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "unknown encoding"),
        ("<annotation><object>", "no element found"),
        ("", "no element found"),
        ("no xml", "syntax error"),
    ],
)
def test_hostile_and_damaged_annotations_are_refused(root, tmp_path, text, reason):
    (tmp_path / "secret").write_text("dog")
    path = root / "Annotations" / "2007_02.xml"
    path.write_text(text.replace("SECRET", (tmp_path / "secret").as_uri()))
    message = refusal(root, "val")
    assert f"Expected a VOC annotation at {path}" in message
    assert reason in message


def test_a_missing_root_is_named(tmp_path):
    message = refusal(tmp_path / "none")
    assert f"Expected a VOC data set (a folder) at {tmp_path / 'none'}, found none." in message
    assert "--data-root" in message


def test_a_root_without_images_is_refused(tmp_path):
    message = refusal(tmp_path)
    assert f"a VOC data set with JPEGImages at {tmp_path / 'JPEGImages'}, found none" in message


def test_an_unknown_split_is_answered_by_those_that_are_there(root):
    message = refusal(root, "trainval")
    assert "Expected the split 'trainval'" in message
    assert "found train, val." in message
    assert "--split" in message


def test_no_lists_at_all_are_said_to_be_none(root):
    for path in (root / "ImageSets" / "Segmentation").iterdir():
        path.unlink()
    assert "found no lists." in refusal(root, "train")


def test_an_empty_split_is_refused(root):
    write_list(root, "none", "\n \n")
    assert "The split 'none' of the voc data set is empty." in refusal(root, "none")


def test_ids_without_image_are_named(root):
    write_list(root, "more", "2007_01\n2012_08\n2012_09\n")
    message = refusal(root, "more")
    assert f"Expected an image of each id of split 'more' in {root / 'JPEGImages'}" in message
    assert "found none for 2012_08, 2012_09." in message


def test_an_id_twice_is_refused(root):
    write_list(root, "twice", "2007_01\n2007_02\n2007_01\n")
    message = refusal(root, "twice")
    assert "Expected each image id once, found more of 2007_01." in message


def test_a_list_that_is_no_text_is_refused(root):
    (root / "ImageSets" / "Segmentation" / "val.txt").write_bytes(b"\xff\xfe\x00")
    assert "Expected a text file of image ids" in refusal(root, "val")


def test_images_are_not_decoded_by_opening(root):
    (root / "JPEGImages" / "2007_02.jpg").write_bytes(b"")
    dataset = open_voc(root, "val")
    with pytest.raises(BadFile, match="UnidentifiedImageError"):
        dataset.load_image(dataset.items[0])


def test_the_fingerprint_goes_by_labels_and_not_by_place(root, tmp_path):
    other = make_voc(tmp_path / "elsewhere")
    assert open_voc(root, "val").fingerprint == open_voc(other, "val").fingerprint
    (other / "Annotations" / "2007_02.xml").write_text(xml(["bird"]))
    assert open_voc(root, "val").fingerprint != open_voc(other, "val").fingerprint
