"""`wsssfast convert`: every format, and one line for what cannot be done."""

import json

import numpy as np
import pytest
from support import run_with_little_room

from wsssfast.data.images import read_mask
from wsssfast.shards import CamRecord, LabelRecord, LabelShards, write_cam_shard, write_label_shard

NAMES = ["cat", "dog", "cow"]


@pytest.fixture
def cams(tmp_path):
    folder = tmp_path / "cams"
    folder.mkdir()
    grid = np.random.RandomState(0).rand(1, 40, 50).astype(np.float32)
    records = [CamRecord(f"im{n}", (40, 50), (n,), {"final": [grid]}) for n in range(3)]
    write_cam_shard(
        folder, 0, 1, records, failed={"im9": "truncated"}, epsilons={"final": 1e-8}, config={},
        identity={"class_names": NAMES, "stages": ["final"], "scales": [1.0]}, versions={},
    )  # fmt: skip
    return folder


def write_labels(folder, count=1, failed=None):
    folder.mkdir()
    rng = np.random.RandomState(1)
    records = [
        LabelRecord.of(f"im{n}", (n,), rng.choice([0, n + 1, 255], (40, 50)).astype(np.uint8))
        for n in range(3)
    ]
    write_label_shard(
        folder, 0, count, records, failed=failed or {}, identity={"class_names": NAMES},
        config={}, versions={},
    )  # fmt: skip
    return folder


def test_label_shards_become_png_and_coco(wsssfast, tmp_path):
    labels, png, coco = write_labels(tmp_path / "labels"), tmp_path / "png", tmp_path / "m.json"
    assert wsssfast("convert", labels, "--to", "png", "--out", png) == (
        0,
        f"3 files in {png}\n",
        "",
    )
    for image_id in (shards := LabelShards(labels)):
        assert np.array_equal(read_mask(png / f"{image_id}.png"), shards.mask(image_id))
    words = ["convert", labels, "--to", "coco-rle", "--out", coco]
    for _ in range(2):  # what is there is replaced
        assert wsssfast(*words) == (0, f"3 images in {coco}\n", "")
    assert len(json.loads(coco.read_text())["images"]) == 3


def test_images_that_the_shards_lack_are_told(wsssfast, cams, tmp_path):
    code, out, err = wsssfast("convert", cams, "--to", "npy", "--out", tmp_path / "npy")
    assert (code, "3 files" in out, "unreadable: im9: truncated" in err) == (3, True, True)
    labels = write_labels(tmp_path / "labels", 2, {"im9": "no CAM"})
    code, out, err = wsssfast("convert", labels, "--to", "png", "--out", tmp_path / "png")
    assert (code, "3 files" in out, "unreadable: im9: no CAM" in err) == (3, True, True)
    assert f"missing in {labels}: labels-00001-of-00002. Complete the export" in err
    labels = write_labels(tmp_path / "more", 2)
    code, _, err = wsssfast("convert", labels, "--to", "coco-rle", "--out", tmp_path / "m.json")
    assert (code, err.count("\n")) == (3, 1)


@pytest.mark.parametrize(
    ("source", "target", "more", "text"),
    [
        ("cams", "png", [], "found CAM shards. Make them with `wsssfast export-labels`."),
        ("cams", "coco-rle", [], "found CAM shards. Make them with `wsssfast export-labels`."),
        ("labels", "npy", [], "Expected CAM shards in"),
        ("labels", "irn", [], "found label shards. Make them with `wsssfast export-cams`."),
        ("nowhere", "png", [], "Expected label shards in nowhere, found none"),
        ("labels", "png", ["--stage", "final"], "Expected --stage with --to npy or irn alone"),
        ("cams", "npy", ["--classes", "voc"], "Expected --classes with --to shards alone"),
        ("cams", "npy", ["--stage", "original"], "Expected a stage out of final"),
        ("cams", "shards", ["--classes", "voc"], "Expected a folder of .npy CAM dumps"),
        ("labels", "voc-archive", [], "ends in .tgz or .tar.gz, found out."),
    ],
)
def test_wrong_calls_get_one_line(
    wsssfast, cams, tmp_path, monkeypatch, source, target, more, text
):
    write_labels(tmp_path / "labels")
    monkeypatch.chdir(tmp_path)
    code, out, err = wsssfast("convert", source, "--to", target, "--out", "out", *more)
    assert (code, text in err, err.count("\n"), out) == (2, True, 1, ""), err
    assert {path.name for path in tmp_path.iterdir()} == {"cams", "labels"}


@pytest.mark.parametrize("target", ["npy", "irn", "png", "coco-rle", "shards"])
def test_a_place_that_cannot_be_written_to_gets_one_line(wsssfast, cams, tmp_path, target):
    labels, dump, more = write_labels(tmp_path / "labels"), tmp_path / "npy", []
    wsssfast("convert", cams, "--to", "npy", "--out", dump)
    if target == "shards":
        more = ["--classes", "voc"]
    source = {"npy": cams, "irn": cams, "shards": dump}.get(target, labels)
    (tmp_path / "file").write_text("mine")
    for out, text in (
        (labels if target == "coco-rle" else tmp_path / "file", "Expected a f"),
        (tmp_path / "file" / "x" / "y", "Expected to make the folder"),
    ):
        code, _, err = wsssfast("convert", source, "--to", target, "--out", out, *more)
        assert (code, text in err, err.count("\n")) == (2, True, 1), err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("target", ["npy", "png", "coco-rle", "shards"])
def test_a_full_disk_is_told_and_leaves_nothing_half_done(wsssfast, cams, tmp_path, target):
    labels, dump, more = write_labels(tmp_path / "labels"), tmp_path / "npy", []
    if target == "shards":
        wsssfast("convert", cams, "--to", "npy", "--out", dump)
        more = ["--classes", "voc"]
    source = {"npy": cams, "shards": dump}.get(target, labels)
    out = tmp_path / "new" / "out"
    found = run_with_little_room(300, ["convert", source, "--to", target, "--out", out, *more])
    assert (found.returncode, found.stdout) == (2, ""), found.stderr
    assert found.stderr.startswith(f"Error: Expected room and the right to write {out}: File too")
    assert found.stderr.count("\n") == 1
    left = {path.name for path in (tmp_path / "new").rglob("*") if path.is_file()}
    assert left == ({".wsssfast.lock"} if target == "shards" else set())


def test_a_folder_of_irns_dumps_gets_one_line(wsssfast, cams, tmp_path):
    assert wsssfast("convert", cams, "--to", "irn", "--out", tmp_path / "irn")[0] == 3
    code, out, err = wsssfast(
        "convert", tmp_path / "irn", "--to", "shards", "--classes", "voc", "--out", tmp_path / "x"
    )
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert "found one of IRN" in err and not (tmp_path / "x").exists()
