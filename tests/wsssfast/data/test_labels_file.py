import json
from pathlib import Path

import numpy as np
import pytest

from wsssfast.data.dataset import class_name
from wsssfast.data.labels_file import match_labels, read_csv, read_labels
from wsssfast.errors import WsssError

CLASSES = ("cat", "dog", "cow")
EXPECTED = {"a": (0, 2), "b": (), "c": (1,)}


def text_file(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def json_file(path, value):
    return text_file(path, json.dumps(value))


def npy_file(path, value):
    np.save(path, value)
    return path


def refusal(function, *args):
    with pytest.raises(WsssError) as caught:
        function(*args)
    assert caught.value.code == 2
    return f"{caught.value.message} {caught.value.remedy}"


def test_json_of_names_gives_sorted_indices(tmp_path):
    path = json_file(tmp_path / "l.json", {"a": ["cow", "cat"], "b": [], "c": ["dog", "dog"]})
    assert read_labels(path, CLASSES) == EXPECTED


def test_json_of_indices_gives_the_same(tmp_path):
    path = json_file(tmp_path / "l.json", {"a": [2, 0], "b": [], "c": [1, "dog"]})
    assert read_labels(path, CLASSES) == EXPECTED


def test_csv_gives_the_same_and_drops_the_extensions(tmp_path):
    path = text_file(tmp_path / "l.csv", "image,labels\na.jpg,cow; cat\nb.png,\nc,dog;\n")
    assert read_labels(path, CLASSES) == EXPECTED


@pytest.mark.parametrize("dtype", ["f4", "f8", "i8", "u1", "?"])
def test_vectors_give_the_same(tmp_path, dtype):
    vectors = {"a": [1, 0, 1], "b": [0, 0, 0], "c": [0, 1, 0]}
    path = npy_file(tmp_path / "l.npy", {i: np.array(v, dtype) for i, v in vectors.items()})
    assert read_labels(path, CLASSES) == EXPECTED


def test_vectors_that_are_lists_give_the_same(tmp_path):
    path = npy_file(tmp_path / "l.npy", {"a": [1, 0, 1.0], "b": (0, 0, 0), "c": [0, True, 0]})
    assert read_labels(path, CLASSES) == EXPECTED


def test_indices_are_python_ints(tmp_path):
    labels = read_labels(npy_file(tmp_path / "l.npy", {"a": np.ones(3)}), CLASSES)
    assert [type(c) for c in labels["a"]] == [int, int, int]


def test_a_csv_may_start_with_a_byte_order_mark_and_quote_its_names(tmp_path):
    text = '\ufeffimage,labels,note\r\n"a, the first.jpg",cat,seen\r\nb.jpg,"dog;cow",\r\n'
    path = text_file(tmp_path / "l.csv", text)
    assert read_csv(path) == {"a, the first.jpg": ["cat"], "b.jpg": ["dog", "cow"]}


@pytest.mark.parametrize("wrong", ["horse", "Cat", 3, -1, 0.5, True, None, ["cat"], {}])
def test_an_unknown_class_of_json_is_named(tmp_path, wrong):
    path = json_file(tmp_path / "l.json", {"a": ["cat"], "b": ["cat", wrong]})
    message = refusal(read_labels, path, CLASSES)
    assert f"Unknown class {str(wrong)!r} of image 'b' in {path}." in message
    assert "Expected one of cat, dog, cow." in message


def test_an_unknown_class_of_csv_is_named(tmp_path):
    path = text_file(tmp_path / "l.csv", "image,labels\na.jpg,cat;horse\n")
    assert "Unknown class 'horse' of image 'a'" in refusal(read_labels, path, CLASSES)


@pytest.mark.parametrize(
    ("vector", "found"),
    [
        (np.zeros(4), "float64 [4]"),
        (np.zeros((1, 3)), "float64 [1, 3]"),
        (np.float64(1), "object []"),
        ([1, 0], "int64 [2]"),
        (np.array(["cat", "dog", "cow"]), "<U3 [3]"),
        ([[1], [0, 1], [1]], "object []"),
        (["cat", "dog", "cow"], "object []"),
        ("cat", "object []"),
        (None, "object []"),
    ],
)
def test_what_is_no_vector_of_a_number_for_each_class_is_refused(tmp_path, vector, found):
    path = npy_file(tmp_path / "l.npy", {"a": np.zeros(3), "b": vector})
    message = refusal(read_labels, path, CLASSES)
    assert f"Expected 3 numbers for each image in {path}, found {found} for 'b'." in message
    assert "Is this the labels file of another data set?" in message


def test_a_vector_under_a_number_is_refused(tmp_path):
    path = npy_file(tmp_path / "l.npy", {7: np.zeros(3)})
    assert "ids of images as keys, found '7' (int)" in refusal(read_labels, path, CLASSES)


def test_ids_may_be_numbers_as_irn_has_them(tmp_path):
    one = np.eye(20)[3]
    path = npy_file(tmp_path / "l.npy", {2007000033: one, "2007_000042": one})
    voc = tuple(f"c{n}" for n in range(20))
    assert read_labels(path, voc) == {"2007_000033": (3,), "2007_000042": (3,)}
    path = npy_file(tmp_path / "l.npy", {np.int64(139): np.eye(80)[5]})
    assert read_labels(path, tuple(f"c{n}" for n in range(80))) == {"000000000139": (5,)}


@pytest.mark.parametrize("value", [-1, 0.3, np.nan, 2])
def test_a_vector_of_anything_but_0_and_1_is_refused(tmp_path, value):
    path = npy_file(tmp_path / "l.npy", {"a": np.array([1, 0, value])})
    assert f"Expected 0 and 1 for each image in {path}" in refusal(read_labels, path, CLASSES)


@pytest.mark.parametrize(
    "text",
    [
        'Image;Labels\r\na.x.2.jpg;"cat;dog"\r\nb.1;\r\n;\r\n',
        "image\tlabels\na.x.2\tcat ; dog\nb.1.png\t\n",
        '"image", "labels",note\na.x.2,"cat; dog",\nb.1,,x\n,,\n',
    ],
)
def test_spreadsheets_of_any_country_are_read_and_dots_belong_to_names(tmp_path, text):
    (tmp_path / "l.csv").write_text(text, encoding="utf-8-sig")
    found = read_labels(tmp_path / "l.csv", ("cat", "dog"))
    assert found == {"a.x.2": (0, 1), "b.1": ()}


def test_a_class_has_one_spelling(tmp_path):
    classes = ("fore\u0302t", "solar\u00a0 panel")
    (tmp_path / "l.csv").write_text("image,labels\na,for\u00eat;solar panel\n", encoding="utf-8")
    assert read_labels(tmp_path / "l.csv", tuple(map(class_name, classes))) == {"a": (0, 1)}
    assert list(read_csv(tmp_path / "l.csv").values()) == [list(map(class_name, classes))]


def test_labels_in_columns_of_their_own_are_refused(tmp_path):
    path = text_file(tmp_path / "l.csv", "image,labels\na.jpg,cat\nb.jpg,cat,dog\n")
    message = refusal(read_csv, path)
    assert "found more in line 3." in message and "Write b.jpg,cat;dog" in message


def test_a_name_in_another_case_is_told():
    message = refusal(match_labels, {"IMG_1": (0,)}, ["img_1"], {"img_1"}, Path("l.csv"))
    assert "found none for img_1 in l.csv, but for IMG_1." in message


@pytest.mark.parametrize("value", [np.zeros(3), [1, 2]])
def test_a_npy_file_of_no_dict_is_refused(tmp_path, value):
    path = npy_file(tmp_path / "l.npy", value)
    assert "Expected {id: multi-hot array}" in refusal(read_labels, path, CLASSES)


def test_an_image_twice_in_a_csv_is_named_with_its_line(tmp_path):
    path = text_file(tmp_path / "l.csv", "image,labels\na.jpg,cat\nb.jpg,\na.jpg,dog\n")
    assert f"Found an image twice in {path}, line 4: 'a.jpg'." in refusal(read_csv, path)


def test_two_rows_of_one_id_are_refused(tmp_path):
    path = text_file(tmp_path / "l.csv", "image,labels\na.jpg,cat\na.png,dog\n")
    assert f"Found 'a' in two rows of {path}." in refusal(read_labels, path, CLASSES)


def test_a_row_without_an_image_is_named_by_its_line(tmp_path):
    path = text_file(tmp_path / "l.csv", "image,labels\n,cat\n")
    assert "Found a row without an image" in refusal(read_csv, path)
    assert "line 2" in refusal(read_csv, path)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("name,classes\na.jpg,cat\n", "'name,classes'"),
        ("labels,image\ncat,a.jpg\n", "'labels,image'"),
        ("image:labels\na.jpg:cat\n", "'image:labels'"),
        ("image,labels;more\n", "'image,labels;more'"),
        ("a.jpg,cat\n", "'a.jpg,cat'"),
        ("", "''"),
    ],
)
def test_another_header_is_quoted(tmp_path, text, found):
    path = text_file(tmp_path / "l.csv", text)
    message = refusal(read_csv, path)
    assert f"Expected the header image,labels in {path}, found {found}." in message


def test_a_csv_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "l.csv"
    path.write_bytes(b"\xff\xfe\x00binary")
    assert f"Expected a CSV file in UTF-8 at {path}" in refusal(read_csv, path)


@pytest.mark.parametrize("text", ["{", "", "[" * 100_000, '{"a": 1' + "0" * 5000 + "}"])
def test_a_file_that_is_no_json_is_refused(tmp_path, text):
    path = text_file(tmp_path / "l.json", text)
    assert f"Expected JSON at {path}" in refusal(read_labels, path, CLASSES)


@pytest.mark.parametrize("value", [[], {"a": "cat"}, {"a": {"cat": 1}}, 3])
def test_json_of_another_structure_is_refused(tmp_path, value):
    path = json_file(tmp_path / "l.json", value)
    assert "Expected {id: [classes]}" in refusal(read_labels, path, CLASSES)


def test_another_extension_is_refused(tmp_path):
    path = text_file(tmp_path / "l.txt", "")
    message = refusal(read_labels, path, CLASSES)
    assert "Expected a .json, .csv or .npy labels file, found l.txt." in message


def test_a_missing_file_is_named(tmp_path):
    message = refusal(read_labels, tmp_path / "l.csv", CLASSES)
    assert f"Expected a labels file at {tmp_path / 'l.csv'}, found none." in message


def test_matching_gives_the_labels_of_the_wanted_ids_in_their_order():
    labels = match_labels(EXPECTED, ["c", "a"], {"a", "b", "c", "d"}, Path("l.csv"))
    assert list(labels.items()) == [("c", (1,)), ("a", (0, 2))]


def test_images_without_labels_are_counted_and_named():
    wanted = ["a", "p", "q", "r", "s", "t"]
    message = refusal(match_labels, EXPECTED, wanted, {*wanted, *EXPECTED}, Path("l.csv"))
    assert "found none for p, q, r and 2 more in l.csv." in message
    assert "an empty list says: none of the classes" in message


def test_labels_of_no_image_are_named():
    message = refusal(match_labels, EXPECTED, ["a"], {"a", "b"}, Path("l.csv"))
    assert "found the unknown id c in l.csv." in message
    assert "remove these rows" in message
