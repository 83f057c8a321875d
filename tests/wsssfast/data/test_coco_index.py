import io
import json
import pickle
import random
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsssfast.data.coco import instance_mask, open_coco
from wsssfast.data.coco_index import read_index
from wsssfast.errors import WsssError

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
NAMES = st.text(max_size=8)
IDS = st.integers(-3, 6) | st.integers(2**60, 2**200)
PARTS = {
    "images": st.lists(
        st.fixed_dictionaries(
            {"id": IDS, "file_name": NAMES, "height": st.integers(0, 9), "width": st.just(4.0)}
        )
    ),
    "annotations": st.lists(
        st.fixed_dictionaries({
            "id": IDS, "image_id": IDS, "category_id": IDS, "area": st.floats(allow_nan=False),
            "segmentation": st.none() | st.lists(st.lists(st.floats(0, 1))), "note": NAMES,
        })
    ),
    "categories": st.lists(st.fixed_dictionaries({"id": IDS, "name": NAMES})),
    "info": st.none() | NAMES | st.lists(NAMES) | st.dictionaries(NAMES, st.lists(NAMES)),
}  # fmt: skip


def by_group(path, index):
    """image id -> annotations, of the images that have any."""
    found = json.loads(path.read_bytes())
    return {
        int(image["id"]): index.texts.read(path, group)
        for image, group in zip(found["images"], index.groups.tolist(), strict=True)
        if group >= 0
    }


def expected_by_group(found):
    groups = defaultdict(list)
    for annotation in found["annotations"]:
        groups[int(annotation["image_id"])].append(annotation)
    return {int(i["id"]): groups[int(i["id"])] for i in found["images"] if int(i["id"]) in groups}


@given(
    found=st.fixed_dictionaries(PARTS),
    order=st.permutations(list(PARTS)),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 1]),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    chunk=st.integers(1, 7),
)
def test_the_index_says_what_json_says(
    tmp_path_factory, found, order, ascii_only, indent, mark, chunk
):
    text = json.dumps({k: found[k] for k in order}, ensure_ascii=ascii_only, indent=indent)
    data = mark + text.encode()
    path = tmp_path_factory.getbasetemp() / "instances.json"
    path.write_bytes(data)
    index = read_index(io.BytesIO(data), chunk)
    assert index.categories == tuple((c["id"], c["name"]) for c in found["categories"])
    assert index.file_names == tuple(i["file_name"] for i in found["images"])
    assert index.sizes.tolist() == [[i["height"], i["width"]] for i in found["images"]]
    assert by_group(path, index) == expected_by_group(found)
    categories = [index.category_ids[c] for c in index.annotation_categories]
    assert sorted(categories) == sorted(a["category_id"] for a in found["annotations"])
    owners = np.repeat(np.arange(len(index.texts.starts) - 1), np.diff(index.texts.starts))
    for image, group in zip(found["images"], index.groups.tolist(), strict=True):
        own = [c for c, owner in zip(categories, owners, strict=True) if owner == group]
        wanted = [a for a in found["annotations"] if a["image_id"] == image["id"]]
        assert own == [a["category_id"] for a in wanted]


def small(root, seed=0, images=12):
    """A data set whose annotations lie anywhere in the file, of every kind of shape."""
    rng = random.Random(seed)
    (root / "annotations").mkdir()
    (root / "train2017").mkdir()
    shapes = [
        [[1, 1, 6.5, 1, 6, 4, 1.25, 4]],
        [[0, 0, 3, 0, 3, 3], [4, 2, 8, 2, 8, 5]],
        {"size": [6, 9], "counts": [5, 10, 39]},
    ]
    records = [{"id": n, "file_name": f"ü{n}.jpg", "height": 6, "width": 9} for n in range(images)]
    annotations = [
        {
            "id": n, "image_id": rng.randrange(images - 1), "category_id": rng.choice([3, 5, 90]),
            "segmentation": rng.choice(shapes), "area": rng.random(), "iscrowd": rng.randrange(2),
            "note": 'é "}, {" \\',
        }
        for n in range(60)
    ]  # fmt: skip
    categories = [{"id": n, "name": str(n)} for n in (90, 3, 5)]
    found = {"annotations": annotations, "categories": categories, "images": records}
    for record in records:
        (root / "train2017" / record["file_name"]).touch()
    path = root / "annotations" / "instances_train2017.json"
    path.write_text(json.dumps(found, ensure_ascii=bool(seed)), encoding="utf-8")
    return path


def same_as_the_whole_file(root, split):
    """Compare labels and masks with those that come of json.load."""
    found = json.loads((root / "annotations" / f"instances_{split}.json").read_bytes())
    ids = sorted(category["id"] for category in found["categories"])
    classes = {number: c for c, number in enumerate(ids)}
    groups = expected_by_group(found)
    dataset = open_coco(root, split)
    records = {Path(i["file_name"]).stem: i for i in found["images"] if i["id"] in groups}
    assert [item.id for item in dataset] == sorted(records)
    for item in dataset:
        record = records[item.id]
        annotations = groups[record["id"]]
        assert item.labels == tuple(sorted({classes[a["category_id"]] for a in annotations}))
        expected = instance_mask(annotations, classes, record["height"], record["width"])
        np.testing.assert_array_equal(dataset.load_mask(item), expected)


@pytest.mark.parametrize("seed", [0, 1])
def test_masks_are_those_of_the_whole_file(tmp_path, seed):
    small(tmp_path, seed)
    same_as_the_whole_file(tmp_path, "train2017")


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real COCO images of {SHARED} are not here")
@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_masks_of_real_images_are_those_of_the_whole_file(split):
    same_as_the_whole_file(SHARED / "coco", split)


def test_every_cut_of_a_file_is_refused(tmp_path):
    path = small(tmp_path, images=3)
    data = path.read_bytes()
    for end in [*range(400), *range(400, len(data), 7), *range(len(data) - 300, len(data))]:
        path.write_bytes(data[:end])
        with pytest.raises(WsssError, match="Expected COCO instances in"):
            open_coco(tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"images": [], "annotations": {}, "categories": []}', "'annotations' is no array"),
        ('{"images": [3], "annotations": [], "categories": []}', "not subscriptable"),
        ('{"images": []}', "found no 'annotations'"),
        (
            '{"images": [{"id": 1, "file_name": "a", "height": 1e30, "width": 2}]}',
            "int too big to convert",
        ),
        ('{"images": [{"id": NaN}]}', "cannot convert float NaN to integer"),
        ('{"info": ' + "9" * 5000 + "}", "Exceeds the limit"),
        ('{"images": [{"id": ' + "[" * 100_000, "recursion"),
        ('{"images": []} x', "Extra data (byte 15)"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(tmp_path, text, reason):
    path = small(tmp_path)
    path.write_text(text)
    with pytest.raises(WsssError) as caught:
        open_coco(tmp_path)
    assert f"Expected COCO instances in {path}" in caught.value.message
    assert reason in caught.value.message


def test_of_a_part_given_twice_the_last_counts(tmp_path):
    path = small(tmp_path)
    before = open_coco(tmp_path).fingerprint
    path.write_text('{"annotations": [], "images": [],' + path.read_text().lstrip("{"))
    assert open_coco(tmp_path).fingerprint == before


def test_a_mask_is_refused_when_the_file_has_changed(tmp_path):
    path = small(tmp_path)
    dataset = open_coco(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"6.5", b"7.5"))
    with pytest.raises(WsssError, match=r"found it changed\. Let it be"):
        for item in dataset:
            dataset.load_mask(item)
    path.write_text("")
    with pytest.raises(WsssError, match="found it changed"):
        dataset.load_mask(dataset.items[0])
    path.unlink()
    with pytest.raises(WsssError, match="No such file"):
        dataset.load_mask(dataset.items[0])


def test_masks_can_be_loaded_elsewhere(tmp_path, monkeypatch):
    """Threads, and processes that got the data set pickled, in another folder."""
    small(tmp_path)
    monkeypatch.chdir(tmp_path)
    dataset = open_coco(Path())
    expected = [dataset.load_mask(item).tolist() for item in dataset]
    with ThreadPoolExecutor(4) as pool:
        assert [m.tolist() for m in pool.map(dataset.load_mask, dataset.items)] == expected
    monkeypatch.chdir(tmp_path.parent)
    again = pickle.loads(pickle.dumps(dataset))
    assert [again.load_mask(item).tolist() for item in again] == expected


def test_image_files_may_be_links(tmp_path):
    small(tmp_path)
    file = tmp_path / "train2017" / "ü0.jpg"
    file.rename(tmp_path / "elsewhere.jpg")
    file.symlink_to(tmp_path / "elsewhere.jpg")
    same_as_the_whole_file(tmp_path, "train2017")
    (tmp_path / "elsewhere.jpg").unlink()
    with pytest.raises(WsssError, match="for ü0, found none"):
        open_coco(tmp_path)
