"""The demo: every step leaves its result; the slow one checks the method's claim on it."""

import json

import pytest

from wsssfast import demo
from wsssfast.errors import WsssError
from wsssfast.kernels import STAGES
from wsssfast.models.checkpoint import load_model, load_segmenter
from wsssfast.shards import LabelShards


def shorten(monkeypatch):
    monkeypatch.setattr(demo, "TRAIN", "train:16")
    monkeypatch.setattr(demo, "VAL", "val:6")
    for name in ("CLASSIFIER", "SEGMENTER"):
        whole = getattr(demo, name)
        short = demo.replace(whole, epochs=1, batch_size=8, warmup_epochs=0.5)
        monkeypatch.setattr(demo, name, short)
    monkeypatch.setattr(demo, "AFFINITY", demo.replace(demo.AFFINITY, epochs=1, batch_size=8))


def test_every_step_leaves_its_result(tmp_path, monkeypatch):
    shorten(monkeypatch)
    lines = []
    result = demo.run_demo(tmp_path, 0, lines.append)
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["stages"] == result.stages
    assert list(result.stages) == list(STAGES)
    assert written["segmenter"] == result.segmenter and 0 <= result.labels <= 1
    assert written["walked"] == result.walked and 0 <= result.walked <= 1
    assert load_model(tmp_path / "classifier" / "last.safetensors").num_classes == 8
    assert len(load_segmenter(tmp_path / "segmenter" / "last.safetensors").config.class_names) == 8
    assert len(LabelShards(tmp_path / "masks")) == 6
    assert "Most confused" in (tmp_path / "masks.html").read_text()
    page = result.report.read_text()
    assert "original+c2p+p2p" in page and "<svg" in page
    assert set(result.seconds) == {
        "train", "export", "evaluate", "label", "affinity", "walk", "segmenter", "predict", "report"
    }  # fmt: skip
    assert any("loss" in line for line in lines)
    assert demo.run_demo(tmp_path, 0).stages == result.stages  # replaces, and repeats


def test_an_interrupted_demo_goes_on(tmp_path, monkeypatch):
    shorten(monkeypatch)

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo, "evaluate_cams", interrupted)
        with pytest.raises(KeyboardInterrupt):
            demo.run_demo(tmp_path, 0)
    before = (tmp_path / "classifier" / "last.safetensors").stat().st_mtime_ns
    lines = []
    demo.run_demo(tmp_path, 0, lines.append)
    assert (tmp_path / "classifier" / "last.safetensors").stat().st_mtime_ns == before
    assert [line.partition(":")[0] for line in lines if " of 9:" in line] == [
        f"{n} of 9" for n in range(1, 10)
    ]
    assert not any("loss" in line for line in lines[:2])
    (tmp_path / "report.json").unlink()
    demo.run_demo(tmp_path, 1)  # another seed begins anew
    assert (tmp_path / "classifier" / "last.safetensors").stat().st_mtime_ns > before


@pytest.mark.slow
def test_the_final_cam_beats_the_original_by_far(tmp_path):
    result = demo.run_demo(tmp_path, 0)
    stages = result.stages
    assert stages["original"] < stages["modulated"] < stages["final"]
    assert stages["final"] > stages["original"] + 0.05
    assert result.walked > result.labels
    assert result.segmenter > 0.5 * result.walked  # twelve epochs of a small ViT


def test_folders_that_no_demo_made_are_left_alone(tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "precious.txt").write_text("mine")
    with pytest.raises(WsssError, match="former demo, found labels"):
        demo.run_demo(tmp_path, 0)
    assert (tmp_path / "labels" / "precious.txt").read_text() == "mine"
