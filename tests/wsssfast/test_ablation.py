"""One-pass scores are those of export and evaluate, setting by setting."""

import json

import numpy as np
import pytest
from PIL import Image
from support import bytes_of, folder_dataset, tiny_model

from wsssfast.ablation import (
    Setting,
    ablate,
    read_ablation,
    read_ablation_files,
    settings_of,
)
from wsssfast.cam_options import CamOptions
from wsssfast.data import open_dataset
from wsssfast.errors import WsssError
from wsssfast.evaluate import evaluate_cams
from wsssfast.export import export_cams
from wsssfast.report.ablation import charts_of, rows_of, write_ablation_report
from wsssfast.shards import open_shards, verify_shards
from wsssfast.shards.format import read_sidecar, write_sidecar
from wsssfast.shards.run import Filling

BASE = CamOptions(scales=(1.0, 0.5), p2p_layers=3)
SIZES = ((40, 32), (33, 47), (40, 32))


@pytest.fixture
def root(tmp_path):
    return folder_dataset(tmp_path / "data", sizes=SIZES)


def test_the_settings():
    plain = settings_of(CamOptions())
    assert len(set(plain)) == len(plain) == 1 + 3 + 1 + 3 + 2 + 6
    assert plain[0] == Setting("original")
    assert Setting("modulated", (1.0,), 3, None, None, "tokens", 0.3, 1.2) in plain
    assert Setting("modulated", (1.0,), 3, 12, None, "attention", 0.3, 1.2) in plain
    lines = settings_of(CamOptions(), ratios=(0.1, 0.3), alphas=(0, 1.2, 2), c2p_ranges=(1, 3),
                        p2p_ranges=(6,), scale_sets=((1.0,), (1.0, 0.5)))  # fmt: skip
    more = [setting for setting in lines if setting not in plain]
    base = Setting("final", (1.0,), 3, 12, "gather", "attention", 0.3, 1.2)
    changed = [{k for k, v in vars(s).items() if v != getattr(base, k)} for s in more]
    assert changed == [{"ratio"}, {"alpha"}, {"alpha"}, {"c2p_layers"}, {"p2p_layers"}, {"scales"}]
    grid = settings_of(CamOptions(), stages=["final"], propagations=["gather"],
                       related_by=["attention"], ratios=(0.1, 0.2, 0.3, 0.4, 0.5),
                       alphas=(0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8), grid=True)  # fmt: skip
    assert len(grid) == 35
    assert all(Setting.from_json(json.loads(json.dumps(s.to_json()))) == s for s in (*grid, *lines))


def test_scores_are_those_of_the_shards(tmp_path, root):
    dataset = open_dataset("folder", root)
    model = tiny_model()
    settings = settings_of(
        BASE, ratios=(0.2,), alphas=(0.0, 2.0), c2p_ranges=(1,), p2p_ranges=(1, 2),
        scale_sets=((1.0,), (0.5, 2.0)),
    )  # fmt: skip
    ablate(model, dataset, tmp_path / "scores", settings, BASE, batch_size=2)
    ablation = read_ablation(tmp_path / "scores")
    assert (ablation.failed, ablation.images, list(ablation.scores)) == ({}, 3, list(settings))
    for number, setting in enumerate(settings):
        out = tmp_path / f"cams{number}"
        export_cams(model, dataset, out, setting.options(BASE))
        shards, _ = evaluate_cams(open_shards(out), dataset, (setting.stage,))
        stored, found = shards[setting.stage], ablation.scores[setting]
        assert found["images"] == 3
        # storing rounds to 16 bits: a pixel may change sides
        assert found["miou"] == pytest.approx(stored["miou"], abs=2e-3), setting
        curves = np.array(found["curve"]) - np.array(stored["curve"])
        assert abs(curves).max() < 4e-3, setting


def test_alpha_zero_is_the_unmodulated_stage(tmp_path, root):
    dataset = open_dataset("folder", root)
    settings = settings_of(BASE, alphas=(0.0,))
    ablate(tiny_model(), dataset, tmp_path / "scores", settings, BASE)
    scores = read_ablation(tmp_path / "scores").scores
    final = scores[Setting("final", BASE.scales, 3, 3, "gather", "attention", 0.3, 0.0)]
    plain = scores[Setting("original+c2p+p2p", BASE.scales, 3, 3, "gather")]
    assert final["miou"] == plain["miou"] and final["curve"] == plain["curve"]


def test_workers_and_interrupted_runs_count_the_same(tmp_path, root):
    dataset = open_dataset("folder", root)
    settings = settings_of(BASE, stages=["original", "final"])
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    ablate(tiny_model(), dataset, whole, settings, BASE, shard_size=1)
    done = ablate(
        tiny_model(), dataset, parts, settings, BASE, shard_size=1, filling=Filling(worker=(1, 2))
    )
    assert done.written_shards == 3
    for path in parts.glob("scores-00001-*"):
        path.unlink()
    with pytest.raises(WsssError, match="1 missing"):
        read_ablation(parts)
    done = ablate(tiny_model(), dataset, parts, settings, BASE, shard_size=1)
    assert (done.written_shards, done.skipped_shards) == (1, 2)
    stored = [{k: v for k, v in bytes_of(out).items() if "scores" in k} for out in (whole, parts)]
    assert stored[0] == stored[1] and len(stored[0]) == 6
    assert not verify_shards(parts).problems
    with pytest.raises(WsssError, match="settings"):
        ablate(tiny_model(), dataset, parts, settings[:1], BASE, shard_size=1)


def test_unreadable_images_and_masks_are_named_and_redone(tmp_path, root):
    image, mask = root / "images" / "im0.png", root / "masks" / "im2.png"
    whole = image.read_bytes(), mask.read_bytes()
    image.write_bytes(b"no image")
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(mask)
    dataset = open_dataset("folder", root)
    for _ in range(2):
        summary = ablate(tiny_model(), dataset, tmp_path / "s", [Setting("original")], BASE)
        assert sorted(summary.failed) == ["im0", "im2"]
        assert "expected the image's size" in summary.failed["im2"]
    assert (summary.skipped_shards, read_ablation(tmp_path / "s").images) == (1, 1)
    for path, content in zip((image, mask), whole, strict=True):
        path.write_bytes(content)
        summary = ablate(tiny_model(), dataset, tmp_path / "s", [Setting("original")], BASE)
        assert summary.written_shards == 1
    assert read_ablation(tmp_path / "s").images == 3


def test_masks_are_needed(tmp_path):
    root = folder_dataset(tmp_path / "d")
    for path in (root / "masks").iterdir():
        path.unlink()
    ablate(tiny_model(), open_dataset("folder", root), tmp_path / "s", [Setting("original")], BASE)
    with pytest.raises(WsssError, match="Expected masks to score against"):
        read_ablation(tmp_path / "s")


def test_shards_of_other_settings_are_refused(tmp_path, root):
    out = tmp_path / "s"
    ablate(tiny_model(), open_dataset("folder", root), out, [Setting("original")], BASE)
    (path,) = out.glob("*.json")
    told = read_sidecar(path)
    told.identity["settings"] = [{"stage": "original", "scales": [1.0], "colour": "red"}]
    write_sidecar(out, told)
    with pytest.raises(WsssError, match="settings and thresholds"):
        read_ablation(out)
    told.identity["settings"] *= 10**6
    write_sidecar(out, told)
    with pytest.raises(WsssError, match="found another"):
        read_ablation(out)


def test_the_page_shows_what_was_varied(tmp_path, root):
    settings = settings_of(
        BASE, stages=["final"], related_by=["attention"], ratios=(0.1, 0.5), alphas=(0.0, 1.0, 2.0),
        grid=True,
    )  # fmt: skip
    out = tmp_path / "s"
    ablate(tiny_model(), open_dataset("folder", root), out, settings, BASE)
    ablation = read_ablation(out)
    rows = rows_of([ablation])
    by_ratio, by_alpha = charts_of({row.setting: row.mean for row in rows})
    assert [line.name for line in by_alpha.lines] == ["ratio 0.1", "ratio 0.5"]
    assert [line.name for line in by_ratio.lines] == ["alpha 0", "alpha 1", "alpha 2"]
    assert all(len(line.path.split()) == 3 for line in by_alpha.lines)
    pages = [tmp_path / name / "a.html" for name in "ab"]
    for page in pages:
        write_ablation_report(page, [ablation], "an <ablation>")
    text = pages[0].read_text()
    assert text == pages[1].read_text() and "an &lt;ablation&gt;" in text
    assert text.count("<polyline") == 5 and text.count('<th scope="row">') == len(settings)


def told(path, miou, named, **changes):
    """The JSON of an ablation of the unmodulated and the final stage."""
    settings = settings_of(BASE, stages=["original+c2p+p2p", "final"], propagations=["gather"],
                           related_by=["tokens"])  # fmt: skip
    rows = [{**setting.to_json(), "miou": value, "threshold": 0.3, "curve": []}
            for setting, value in zip(settings, miou, strict=True)]  # fmt: skip
    text = {"settings": rows, "weights": named, "flip": True, "precision": "fp32",
            "include_self": True, "fuse": "product", "images": 3, "unreadable": {},
            "dataset": "voc", "split": "val", **changes}  # fmt: skip
    path.write_text(json.dumps(text))
    return path


def test_several_classifiers_have_means_and_spread(tmp_path):
    paths = [
        told(tmp_path / f"{n}.json", miou, f"w{n}")
        for n, miou in enumerate([(0.5, 0.53), (0.6, 0.61), (0.55, 0.57)])
    ]
    runs = read_ablation_files(paths)
    plain, final = rows_of(runs)
    assert (plain.mean, plain.spread) == (pytest.approx(55), pytest.approx(5))
    assert (plain.gain, plain.gain_spread) == (None, None)
    assert (final.gain, final.gain_spread) == (pytest.approx(2), pytest.approx(1))
    write_ablation_report(tmp_path / "a.html", runs, "three")
    page = (tmp_path / "a.html").read_text()
    assert "55.00 ± 5.00" in page and "+2.00 ± 1.00" in page and "over 3 classifiers" in page


def test_what_cannot_be_compared_is_refused(tmp_path):
    one = told(tmp_path / "one.json", (0.5, 0.5), "a")
    for changes, words in [
        ({"split": "train"}, "of one data set"),
        ({"weights": "a"}, "one of them twice"),
        ({"settings": json.loads(one.read_text())["settings"][:1]}, "equal settings"),
        ({"settings": []}, "something else"),
        ({"settings": [{"stage": "final"}]}, "something else: it has no 'scales'."),
    ]:
        other = told(tmp_path / "other.json", (0.5, 0.5), "b", **changes)
        with pytest.raises(WsssError, match=words):
            read_ablation_files([one, other])
    with pytest.raises(WsssError, match="something else"):
        read_ablation_files([tmp_path / "none.json"])
