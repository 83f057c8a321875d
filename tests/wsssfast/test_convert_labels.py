"""Masks as palette PNG and as COCO's instances: exact there and back, whole or not there."""

import json
import os
import random
import shutil
import signal
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from documented import COCO, run_script
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import coco, cocoeval
from support import SHARED, needs_shared

from wsssfast.convert_labels import to_coco, to_png
from wsssfast.data import open_dataset
from wsssfast.data.coco_names import CATEGORY_IDS, CLASS_NAMES
from wsssfast.data.images import read_mask
from wsssfast.data.palette import mask_palette
from wsssfast.errors import WsssError
from wsssfast.shards import LabelRecord, LabelShards, write_label_shard

NAMES = ("cat", "dog", "cow")
MASKS = {  # id -> image labels, mask
    "a": ((0, 2), np.random.RandomState(0).choice([0, 1, 3, 255], size=(30, 41))),
    "b": ((), np.zeros((5, 7))),
    "c": ((), np.full((4, 3), 255)),
    "d": ((1,), np.zeros((6, 2))),
    "e": ((0, 1), np.full((6, 2), 255)),
    "f": ((1,), np.full((1, 1), 2)),
    "ünï": ((0, 1, 2), np.random.RandomState(1).choice([0, 2, 255], size=(9, 1))),
}


def ignore(amount):
    pass


def label_shards(folder, masks, names=NAMES, size=3):
    """Label shards of {id: (labels, mask)}, `size` images each."""
    folder.mkdir(parents=True)
    records = [
        LabelRecord.of(name, labels, np.asarray(mask, np.uint8))
        for name, (labels, mask) in masks.items()
    ]
    count = -(-len(records) // size)
    for index in range(count):
        write_label_shard(
            folder, index, count, records[index * size : (index + 1) * size], failed={},
            identity={"class_names": list(names)}, config={}, versions={},
        )  # fmt: skip
    return LabelShards(folder)


@pytest.fixture
def shards(tmp_path):
    return label_shards(tmp_path / "labels", MASKS)


def as_coco(shards, root):
    """The shards as a COCO folder, opened by our own reader."""
    to_coco(shards, root / "annotations" / "instances_x.json", ignore)
    (root / "x").mkdir()
    for image_id in shards:
        (root / "x" / f"{image_id}.jpg").touch()  # its pixels are not asked for
    return open_dataset("coco", root, "x")


def masks_of(data):
    return {item.id: data.load_mask(item) for item in data}


def assert_same(found, shards):
    assert sorted(found) == sorted(shards)
    for image_id, mask in found.items():
        assert mask.dtype == np.uint8
        assert np.array_equal(mask, shards.mask(image_id)), image_id


def test_png_is_vocs_palette_file(shards, tmp_path):
    assert to_png(shards, tmp_path / "png", ignore) == len(MASKS)
    assert {p.name for p in (tmp_path / "png").iterdir()} == {f"{name}.png" for name in MASKS}
    assert_same({name: read_mask(tmp_path / "png" / f"{name}.png") for name in MASKS}, shards)
    with Image.open(tmp_path / "png" / "a.png") as image:
        assert image.mode == "P"
        assert image.getpalette() == mask_palette().ravel().tolist()


def test_coco_comes_back_with_masks_and_labels(shards, tmp_path):
    data = as_coco(shards, tmp_path / "coco")
    assert data.class_names == NAMES
    assert_same(masks_of(data), shards)
    found = {item.id: item.labels for item in data}
    unlabelled = {"b": (0,), "c": (0,)}  # as an image without annotation would be left out
    assert found == {name: labels for name, (labels, _) in MASKS.items()} | unlabelled


def test_coco_file_is_what_coco_tools_expect(shards, tmp_path):
    to_coco(shards, tmp_path / "m.json", ignore)
    found = json.loads((tmp_path / "m.json").read_text())
    assert found["categories"] == [{"id": n + 1, "name": name} for n, name in enumerate(NAMES)]
    assert found["images"][0] == {"id": 1, "file_name": "a.jpg", "height": 30, "width": 41}
    assert [image["id"] for image in found["images"]] == list(range(1, len(MASKS) + 1))
    notes = found["annotations"]
    assert [note["id"] for note in notes] == list(range(1, len(notes) + 1))
    assert [(n["category_id"], n["iscrowd"]) for n in notes if n["image_id"] == 1] == [
        (1, 0), (3, 0), (1, 1),
    ]  # fmt: skip
    assert [(n["category_id"], n["iscrowd"]) for n in notes if n["image_id"] == 7] == [
        (2, 0), (1, 1), (3, 1),
    ]  # fmt: skip
    single = next(note for note in notes if note["image_id"] == 6)
    assert single == {
        "id": single["id"], "image_id": 6, "category_id": 2, "area": 1, "bbox": [0, 0, 1, 1],
        "segmentation": {"size": [1, 1], "counts": "01"}, "iscrowd": 0,
    }  # fmt: skip
    empty = next(note for note in notes if note["image_id"] == 4)
    assert (empty["area"], empty["bbox"], empty["iscrowd"]) == (0, [0, 0, 0, 0], 1)
    assert run_script(COCO, tmp_path / "m.json", tmp_path).startswith("loading annotations")
    assert_same({name: read_mask(tmp_path / f"{name}.png") for name in MASKS}, shards)


def test_cocos_own_evaluation_takes_the_file(shards, tmp_path, capsys):
    to_coco(shards, tmp_path / "m.json", ignore)
    truth = coco.COCO(str(tmp_path / "m.json"))
    results = [
        {key: note[key] for key in ("image_id", "category_id", "segmentation")} | {"score": 1.0}
        for note in truth.dataset["annotations"]
        if not note["iscrowd"]
    ]
    scorer = cocoeval.COCOeval(truth, truth.loadRes(results), "segm")
    scorer.evaluate()
    scorer.accumulate()
    scorer.summarize()
    assert scorer.stats[0] == pytest.approx(1)


@st.composite
def mask_sets(draw):
    """Class names, and masks of any of their values and of 255, with any labels."""
    count = draw(st.sampled_from([1, 2, 80, 254]))
    values = st.sampled_from([0, 1, (count + 1) // 2, count, 255])
    masks = {}
    for n in range(draw(st.integers(1, 4))):
        height, width = draw(st.tuples(st.integers(1, 8), st.integers(1, 8)))
        pixels = draw(st.lists(values, min_size=height * width, max_size=height * width))
        labels = sorted(draw(st.sets(st.integers(0, count - 1), max_size=3)))
        masks[f"im{n}"] = (tuple(labels), np.array(pixels).reshape(height, width))
    return tuple(f"class {c}" for c in range(count)), masks


@settings(max_examples=50, deadline=None)
@given(mask_sets())
def test_any_masks_come_back_exactly(drawn):
    names, masks = drawn
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = label_shards(folder / "labels", masks, names)
        to_png(shards, folder / "png", ignore)
        assert_same({i: read_mask(folder / "png" / f"{i}.png") for i in masks}, shards)
        data = as_coco(shards, folder / "coco")
        assert data.class_names == names
        assert_same(masks_of(data), shards)
        for image_id, (labels, mask) in masks.items():
            classes = set(np.unique(mask).tolist()) - {0, 255}
            wanted = sorted({*labels, *(value - 1 for value in classes)}) or [0]
            assert list(data.by_id[image_id].labels) == wanted


def image_ids(folder, names):
    shards = label_shards(folder / "labels", dict.fromkeys(names, ((), np.zeros((1, 1)))))
    to_coco(shards, folder / "m.json", ignore)
    found = json.loads((folder / "m.json").read_text())["images"]
    return {Path(image["file_name"]).stem: image["id"] for image in found}


@pytest.mark.parametrize(
    "wanted",
    [
        {"000000000009": 9, "000000581929": 581929},
        {"COCO_train2014_000000000009": 9, "COCO_val2014_000000000042": 42},
        {"COCO_train2014_000000000009": 1, "COCO_val2014_000000000009": 2},
        {"000000000009": 1, "2007_000032": 2, "cat": 3},
    ],
)
def test_image_ids_are_cocos_where_all_are(tmp_path, wanted):
    assert image_ids(tmp_path, reversed(wanted)) == wanted


def test_cocos_classes_have_cocos_category_ids(tmp_path):
    shards = label_shards(tmp_path / "labels", {"a": ((), [[80, 12]])}, CLASS_NAMES)
    to_coco(shards, tmp_path / "m.json", ignore)
    found = json.loads((tmp_path / "m.json").read_text())
    assert [category["id"] for category in found["categories"]] == list(CATEGORY_IDS)
    assert [note["category_id"] for note in found["annotations"]] == [13, 90]


@needs_shared
def test_vocs_own_masks_come_back(tmp_path):
    voc = open_dataset("voc", SHARED / "data/voc", "val")
    items = voc.items[::60]
    masks = {item.id: (item.labels, voc.load_mask(item)) for item in items}
    shards = label_shards(tmp_path / "labels", masks, voc.class_names)
    to_png(shards, tmp_path / "png", ignore)
    for item in items:
        assert np.array_equal(read_mask(tmp_path / "png" / f"{item.id}.png"), masks[item.id][1])
    data = as_coco(shards, tmp_path / "coco")
    assert_same(masks_of(data), shards)
    assert [item.labels for item in data] == [item.labels for item in items]


@needs_shared
def test_cocos_own_masks_ids_and_labels_come_back(tmp_path):
    given = open_dataset("coco", SHARED / "data/coco", "val2017")
    masks = {item.id: (item.labels, given.load_mask(item)) for item in given.items[::6]}
    shards = label_shards(tmp_path / "labels", masks, given.class_names)
    data = as_coco(shards, tmp_path / "coco")
    assert_same(masks_of(data), shards)
    assert {item.id: item.labels for item in data} == {i: masks[i][0] for i in masks}
    path = "annotations/instances_{}.json"
    ours = json.loads((tmp_path / "coco" / path.format("x")).read_text())
    theirs = json.loads((SHARED / "data/coco" / path.format("val2017")).read_text())
    assert [(c["id"], c["name"]) for c in ours["categories"]] == [
        (c["id"], c["name"]) for c in theirs["categories"]
    ]
    keys = ("id", "file_name", "height", "width")
    known = {tuple(image[key] for key in keys) for image in theirs["images"]}
    assert {tuple(image[key] for key in keys) for image in ours["images"]} < known


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    mask = np.random.RandomState(0).randint(0, 4, (128, 128))
    shards = label_shards(tmp_path / "labels", {f"im{n}": ((), mask) for n in range(200)}, size=40)
    tracemalloc.start()
    try:
        to_coco(shards, tmp_path / "m.json", ignore)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "m.json").stat().st_size > 3e6
    assert peak < 1e6


def test_wrong_places_are_told(shards, tmp_path):
    (tmp_path / "file").touch()
    for convert, out, text in (
        (to_png, tmp_path / "file", "found a file at"),
        (to_png, tmp_path / "file" / "x", "Expected to make the folder"),
        (to_coco, tmp_path, "found a folder at"),
        (to_coco, tmp_path / "file" / "m.json", "found a file at"),
    ):
        with pytest.raises(WsssError, match=text):
            convert(shards, out, ignore)
    assert {path.name for path in tmp_path.iterdir()} == {"labels", "file"}


def start(shards, folder):
    """Convert to both formats in a process of its own; its number."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        to_coco(shards, folder / "m.json", ignore)
        to_png(shards, folder / "png", ignore)
        code = 0
    finally:
        os._exit(code)


def whole_files(folder):
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.name: path.read_bytes() for path in paths if not path.name.startswith(".")}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_killed_and_simultaneous_runs_leave_whole_files(tmp_path):
    rng = np.random.RandomState(0)
    masks = {f"im{n}": ((), rng.randint(0, 4, (90, 90))) for n in range(60)}
    shards = label_shards(tmp_path / "labels", masks, size=60)
    for _ in range(2):  # the first is slower
        begin = time.perf_counter()
        os.waitpid(start(shards, tmp_path / "whole"), 0)
        longest = time.perf_counter() - begin
    wanted = whole_files(tmp_path / "whole")
    assert len(wanted) == 61
    chance, out, seen = random.Random(0), tmp_path / "out", set()
    for _ in range(12):
        shutil.rmtree(out, ignore_errors=True)
        process = start(shards, out)
        time.sleep(chance.uniform(0, longest))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        found = whole_files(out)
        assert found.items() <= wanted.items()
        seen.add(len(found))
    assert min(seen) < len(wanted)  # some were killed in time
    processes = [start(shards, out) for _ in range(3)]
    assert [os.waitpid(process, 0)[1] for process in processes] == [0, 0, 0]
    assert whole_files(out) == wanted
