import numpy as np
import pytest
from PIL import Image

from wsssfast.data import open_dataset
from wsssfast.data.dataset import Dataset, Item
from wsssfast.data.folder import open_folder
from wsssfast.errors import WsssError

CSV = "image,labels\nb.png,sofa\na.jpg,cat;sofa\nc.JPEG,\n"


def make_folder(root, csv=CSV, names=("a.jpg", "b.png", "c.JPEG")):
    (root / "images").mkdir(parents=True)
    for n, name in enumerate(names):
        Image.fromarray(np.full((4, 5 + n, 3), 30 * n, np.uint8)).save(root / "images" / name)
    if csv is not None:
        (root / "labels.csv").write_text(csv)
    return root


def add_mask(root, name, values):
    (root / "masks").mkdir(exist_ok=True)
    Image.fromarray(np.array(values, np.uint8)).save(root / "masks" / name)


def labels_of(dataset):
    return {item.id: item.labels for item in dataset}


def refusal(*args):
    with pytest.raises(WsssError) as caught:
        open_folder(*args)
    assert caught.value.code == 2
    return f"{caught.value.message} {caught.value.remedy}"


def test_without_a_list_the_classes_are_the_sorted_names_of_the_csv(tmp_path):
    dataset = open_folder(make_folder(tmp_path))
    assert dataset.class_names == ("cat", "sofa")
    assert labels_of(dataset) == {"a": (0, 1), "b": (1,), "c": ()}
    assert (dataset.name, dataset.split, dataset.label_source) == ("folder", "all", "labels.csv")


def test_many_names_of_the_csv_are_sorted(tmp_path):
    make_folder(tmp_path, "image,labels\na.jpg,owl;cat;dog;ape\nb.png,yak;bee\nc.JPEG,eel\n")
    assert open_folder(tmp_path).class_names == ("ape", "bee", "cat", "dog", "eel", "owl", "yak")


def test_a_list_of_classes_gives_their_order(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "classes.txt").write_text("\ufeffsofa\n\n dog \ncat\n", encoding="utf-8")
    dataset = open_dataset("folder", tmp_path)
    assert dataset.class_names == ("sofa", "dog", "cat")
    assert labels_of(dataset) == {"a": (0, 2), "b": (0,), "c": ()}


def test_a_class_that_is_not_listed_is_refused(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "classes.txt").write_text("sofa\n")
    assert "Unknown class 'cat' of image 'a'" in refusal(tmp_path)


def test_a_class_listed_twice_is_refused(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "classes.txt").write_text("sofa\ncat\nsofa\n")
    assert "each once and none of them 'background', found sofa, cat, sofa." in refusal(tmp_path)


def test_the_background_is_no_class(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "classes.txt").write_text("background\ncat\nsofa\n")
    assert "it has no line in classes.txt" in refusal(tmp_path)


def test_what_is_no_image_is_kept_in_mind(tmp_path):
    make_folder(tmp_path)
    for name in ("IMG_1.HEIC", "Thumbs.db", ".DS_Store", "notes.txt"):
        (tmp_path / "images" / name).write_bytes(b"x")
    (tmp_path / "images" / "more").mkdir()
    assert open_folder(tmp_path).ignored == ("IMG_1.HEIC", "more/", "notes.txt")


def test_names_are_the_same_however_an_umlaut_is_written(tmp_path):
    composed, decomposed = "M\u00fcller", "Mu\u0308ller"
    make_folder(tmp_path, f"image,labels\n{composed}.png,cat\n", names=(f"{decomposed}.png",))
    (tmp_path / "masks").mkdir(exist_ok=True)
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "masks" / f"{decomposed}.png")
    (tmp_path / "list.txt").write_text(decomposed)
    (item,) = open_folder(tmp_path, str(tmp_path / "list.txt"))
    assert item.id == composed and item.mask is not None and item.image.is_file()


def test_a_list_may_hold_names_with_spaces(tmp_path):
    make_folder(tmp_path, "image,labels\nmy cat.png,cat\nmy.png,\n", names=("my cat.png", "my.png"))
    (tmp_path / "list.txt").write_text("my cat\n")
    assert [item.id for item in open_folder(tmp_path, str(tmp_path / "list.txt"))] == ["my cat"]


def test_a_list_of_classes_that_is_no_text_is_refused(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe\x00")
    told = f"Expected a text file of class names at {tmp_path / 'classes.txt'}: it is not UTF-8."
    assert told in refusal(tmp_path)


def test_masks_go_by_the_name_without_extension(tmp_path):
    make_folder(tmp_path)
    add_mask(tmp_path, "a.png", [[0, 2, 255, 1, 0]] * 4)
    dataset = open_folder(tmp_path)
    assert dataset.load_mask(dataset.by_id["a"]).tolist() == [[0, 2, 255, 1, 0]] * 4
    assert dataset.by_id["a"].mask == tmp_path / "masks" / "a.png"
    assert dataset.by_id["b"].mask is None
    assert dataset.load_mask(dataset.by_id["b"]) is None


def test_images_are_read_with_their_size(tmp_path):
    dataset = open_folder(make_folder(tmp_path))
    sizes = [dataset.image_size(item) for item in dataset]
    assert sizes == [dataset.load_image(item).size for item in dataset] == [(5, 4), (6, 4), (7, 4)]


def test_other_files_among_the_images_are_left_alone(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "images" / "Thumbs.db").write_text("x")
    (tmp_path / "images" / "a.txt").write_text("x")
    assert [item.id for item in open_folder(tmp_path)] == ["a", "b", "c"]


def test_a_name_twice_with_two_extensions_is_refused(tmp_path):
    make_folder(tmp_path, names=("a.jpg", "b.png", "a.png"))
    message = refusal(tmp_path)
    assert f"Found a.jpg and a.png in {tmp_path / 'images'}." in message
    assert "rename one" in message


def test_a_row_of_an_absent_image_is_named(tmp_path):
    make_folder(tmp_path, CSV + "d.jpg,cat\n")
    message = refusal(tmp_path)
    assert f"found the unknown id d in {tmp_path / 'labels.csv'}." in message


def test_a_row_of_an_absent_image_is_found_beside_one_of_the_same_stem(tmp_path):
    make_folder(tmp_path, CSV + "a.png,cat\n")
    assert "Found 'a' in two rows of" in refusal(tmp_path)


def test_images_without_row_are_named(tmp_path):
    make_folder(tmp_path, "image,labels\nb.png,sofa\n")
    message = refusal(tmp_path)
    assert "Expected labels for every image, found none for a, c in" in message


def test_a_list_file_picks_images_by_name_or_id(tmp_path):
    make_folder(tmp_path)
    path = tmp_path / "some.txt"
    path.write_text("c.JPEG\n\na\n")
    dataset = open_folder(tmp_path, str(path))
    assert labels_of(dataset) == {"a": (0, 1), "c": ()}
    assert dataset.split == str(path)
    path.write_text("images/b.png\n")
    assert labels_of(open_folder(tmp_path, str(path))) == {"b": (1,)}


def test_all_is_the_name_of_all_images(tmp_path):
    assert len(open_folder(make_folder(tmp_path), "all")) == 3


def test_images_outside_the_list_need_no_row(tmp_path):
    make_folder(tmp_path, "image,labels\nb.png,sofa\n")
    (tmp_path / "some.txt").write_text("b.png\n")
    assert labels_of(open_folder(tmp_path, str(tmp_path / "some.txt"))) == {"b": (0,)}


def test_listed_images_that_are_absent_are_named(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "some.txt").write_text("b.png\nz.png\n")
    message = refusal(tmp_path, str(tmp_path / "some.txt"))
    assert f"Expected an image in {tmp_path / 'images'} for z.png, found none." in message


def test_a_list_that_is_no_file_is_refused(tmp_path):
    message = refusal(make_folder(tmp_path), "train")
    assert "Expected a list file at train, found none." in message
    assert "--split is the path" in message


def test_a_list_with_an_image_twice_is_refused(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "some.txt").write_text("b.png\nb\n")
    message = refusal(tmp_path, str(tmp_path / "some.txt"))
    assert "Expected each image id once, found more of b." in message


def test_another_labels_file_needs_the_class_names(tmp_path):
    make_folder(tmp_path, csv=None)
    path = tmp_path / "l.json"
    path.write_text('{"a": [0], "b": ["sofa"], "c": []}')
    assert f"Expected the class names at {tmp_path / 'classes.txt'}" in refusal(
        tmp_path, None, path
    )
    (tmp_path / "classes.txt").write_text("cat\nsofa\n")
    dataset = open_folder(tmp_path, None, path)
    assert labels_of(dataset) == {"a": (0,), "b": (1,), "c": ()}
    assert dataset.label_source == "l.json"


def test_missing_things_are_named(tmp_path):
    assert f"Expected a data folder at {tmp_path / 'none'}" in refusal(tmp_path / "none")
    message = refusal(tmp_path)
    assert f"Expected the images of a data folder at {tmp_path / 'images'}" in message
    assert f"Move them into {tmp_path / 'images'}" in message
    message = refusal(make_folder(tmp_path, csv=None))
    assert f"Expected the labels of the images at {tmp_path / 'labels.csv'}" in message
    assert "image,labels" in message


def test_a_folder_without_images_is_empty(tmp_path):
    make_folder(tmp_path, "image,labels\n", names=())
    (tmp_path / "images" / "cats").mkdir(parents=True)
    assert f"Expected images in {tmp_path / 'images'}, found cats/." in refusal(tmp_path)
    assert "Give the folder above" in refusal(tmp_path / "images")


def test_more_than_254_classes_are_refused(tmp_path):
    make_folder(tmp_path)
    names = ["cat", "sofa", *(f"c{n}" for n in range(252))]
    (tmp_path / "classes.txt").write_text("\n".join(names))
    assert len(open_folder(tmp_path).class_names) == 254
    (tmp_path / "classes.txt").write_text("\n".join([*names, "one more"]))
    assert "Expected at most 254 classes, found 255." in refusal(tmp_path)


@pytest.mark.parametrize("image_id", ["../a", "a/b", "a\\b", "a\nb", "..", ".", "", "a\x7f"])
def test_ids_that_would_leave_the_output_folder_are_refused(image_id):
    items = (Item(image_id, ()),)
    with pytest.raises(WsssError) as caught:
        Dataset("folder", "all", ("cat",), items, None, None, None, "none")
    assert f"fit for a file name, found {image_id!r}." in str(caught.value)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (
            ("imagenet",),
            "Expected a data set out of voc, coco, folder, synthetic, found 'imagenet'",
        ),
        (("folder",), "Expected the folder of the folder data set. Give it by --data-root."),
        (("voc",), "Expected the folder of the voc data set."),
    ],
)
def test_an_unknown_kind_or_no_root_is_refused(args, text):
    with pytest.raises(WsssError) as caught:
        open_dataset(*args)
    assert text in str(caught.value)
    assert caught.value.code == 2
