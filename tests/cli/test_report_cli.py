"""`wsssfast report`: what it writes, says and refuses."""

import json

import pytest
from support import folder_dataset, tiny_model

from wsssfast.models.checkpoint import save_model


@pytest.fixture
def run(wsssfast, tmp_path):
    """`wsssfast report` on exported CAMs of a folder data set, options by name."""
    root = folder_dataset(tmp_path / "data", extension="jpg")
    save_model(tiny_model(), tmp_path / "model.safetensors")
    data = ["--dataset", "folder", "--data-root", root]
    code, _, err = wsssfast(
        "export-cams", *data, "--checkpoint", tmp_path / "model.safetensors", "--out",
        tmp_path / "cams", "--stage", "original,original+c2p+p2p,final",
    )  # fmt: skip
    assert code == 0, err

    def report(**changes):
        options = {"cams": tmp_path / "cams", "dataset": "folder", "data-root": root,
                   "out": tmp_path / "r.html", **changes}  # fmt: skip
        return wsssfast("report", *(w for k, v in options.items() for w in (f"--{k}", v)))

    return report


def test_it_writes_one_file_and_says_where(run, wsssfast, tmp_path):
    code, out, err = run()
    assert (code, err) == (0, "")
    assert "4 images shown" in out and str(tmp_path / "r.html") in out
    scored = (tmp_path / "r.html").read_text(encoding="utf-8")
    data = ["--dataset", "folder", "--data-root", tmp_path / "data"]
    scores = tmp_path / "scores.json"
    assert wsssfast("evaluate", "cams", tmp_path / "cams", *data, "--json", scores)[0] == 0
    assert run(scores=scores)[0] == 0
    assert (tmp_path / "r.html").read_text(encoding="utf-8") == scored
    (tmp_path / "log.jsonl").write_text('{"step": 1, "epoch": 1, "loss": 0.5}\n')
    code, out, err = run(
        checkpoint=tmp_path / "model.safetensors", training=tmp_path, ids="im2, im0",
        device="cpu", json="-",
    )  # fmt: skip
    found = json.loads(out)
    assert (code, found["images"], found["failed"]) == (0, ["im2", "im0"], {})
    assert found["bytes"] == (tmp_path / "r.html").stat().st_size
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "U(i): " in text and "Training loss" in text


def test_mistakes_get_one_line_and_code_2(run, tmp_path):
    save_model(tiny_model(seed=1), tmp_path / "other.safetensors")
    other = folder_dataset(tmp_path / "elsewhere", sizes=((40, 32),))
    (tmp_path / "scores.json").write_text("{}")
    for changes, words in (
        ({"ids": "im0,im9"}, "found im9"),
        ({"data-root": other}, "images of this data set, found im1"),
        ({"checkpoint": tmp_path / "other.safetensors"}, "made the shards"),
        ({"checkpoint": tmp_path / "none"}, "Expected a checkpoint"),
        ({"scores": tmp_path / "scores.json"}, "Expected scores in"),
        ({"label-shards": tmp_path / "cams"}, "Expected label shards"),
        ({"cams": tmp_path}, "Expected CAM shards"),
        ({"training": tmp_path}, "log of a training run"),
        ({"out": tmp_path}, "found a folder"),
        ({"images": "-1"}, "--images"),
    ):
        code, out, err = run(**changes)
        assert (code, out, err.count("\n")) == (2, "", 1), (changes, err)
        assert words in err and err.startswith("Error: "), err
        assert not (tmp_path / "r.html").exists()


def test_an_unreadable_image_is_listed_with_code_3(run, tmp_path):
    path = tmp_path / "data" / "images" / "im1.jpg"
    path.write_bytes(path.read_bytes()[:400])
    code, out, err = run()
    assert code == 3
    assert "3 images shown" in out
    assert "unreadable: im1" in err
    assert "im1" in (tmp_path / "r.html").read_text(encoding="utf-8").split("Unreadable")[-1]
