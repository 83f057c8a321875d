"""One-pass scores are those of export and evaluate, setting by setting."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from support import folder_dataset, tiny_model

from wsssfast.ablate import Setting, ablate, settings_of
from wsssfast.cam_options import CamOptions
from wsssfast.cli.main import main
from wsssfast.data import open_dataset
from wsssfast.errors import WsssError
from wsssfast.evaluate import evaluate_cams
from wsssfast.export import export_cams
from wsssfast.models.checkpoint import save_model
from wsssfast.shards import open_shards

BASE = CamOptions(scales=(1.0, 0.5), p2p_layers=3)


def test_the_default_settings():
    settings = settings_of(CamOptions())
    assert len(set(settings)) == len(settings)
    by_stage = {stage: [s for s in settings if s.stage == stage] for stage in ("original", "final")}
    assert by_stage["original"] == [Setting("original")]
    # two layer ranges, two orientations, two rankings, 5 + 7 - 1 pairs
    assert len(by_stage["final"]) == 2 * 2 * 2 * 11
    grid = settings_of(CamOptions(), grid=True)
    assert len([s for s in grid if s.stage == "modulated"]) == 2 * 2 * 35


def test_scores_are_those_of_the_shards(tmp_path):
    dataset = open_dataset("folder", folder_dataset(tmp_path / "d", sizes=((40, 32), (33, 47))))
    model = tiny_model()
    settings = settings_of(BASE, ratios=(0.2,), alphas=(0.0, 2.0), c2p_layers=(1, 2))
    found, failed = ablate(model, dataset, settings, BASE)
    assert failed == {}
    for number, setting in enumerate(settings):
        out = tmp_path / f"cams{number}"
        export_cams(model, dataset, out, setting.options(BASE))
        shards, _ = evaluate_cams(open_shards(out), dataset, (setting.stage,))
        stored = shards[setting.stage]
        assert found[setting]["images"] == 2
        # storing rounds to 16 bits: a pixel may change sides
        assert found[setting]["miou"] == pytest.approx(stored["miou"], abs=2e-3), setting


def test_alpha_zero_is_the_unmodulated_stage(tmp_path):
    dataset = open_dataset("folder", folder_dataset(tmp_path / "d"))
    settings = settings_of(BASE, alphas=(0.0,), ratios=(), c2p_layers=(3,))
    found, _ = ablate(tiny_model(), dataset, settings, BASE)
    for way in ("gather", "scatter"):
        final = found[Setting("final", 3, way, "attention", 0.3, 0.0)]
        plain = found[Setting("original+c2p+p2p", 3, way)]
        assert final["miou"] == plain["miou"] and final["curve"] == plain["curve"]


def test_unreadable_images_and_masks_are_named(tmp_path):
    root = folder_dataset(tmp_path / "d")
    (root / "images" / "im0.png").write_bytes(b"no image")
    (root / "masks" / "im2.png").write_bytes(b"no mask")
    dataset = open_dataset("folder", root)
    found, failed = ablate(tiny_model(), dataset, [Setting("original")], BASE)
    assert sorted(failed) == ["im0", "im2"]
    assert found[Setting("original")]["images"] == 2


def test_the_command(tmp_path):
    root = folder_dataset(tmp_path / "d")
    save_model(tiny_model(), tmp_path / "m.safetensors")
    args = [
        "ablate", "--dataset", "folder", "--data-root", str(root), "--checkpoint",
        str(tmp_path / "m.safetensors"), "--ratios", "0.3", "--layers", "2", "--alphas", "0,1.2",
    ]  # fmt: skip
    done = CliRunner().invoke(main, [*args, "--json", str(tmp_path / "a.json")])
    assert done.exit_code == 0, done.output
    assert "original+c2p+p2p" in done.output
    rows = json.loads((tmp_path / "a.json").read_text())["settings"]
    assert {row["c2p_layers"] for row in rows} == {None, 2, 3}
    assert all(len(row["curve"]) == 60 for row in rows)
    for wrong in (["--ratios", "2"], ["--alphas", "-1"], ["--layers", "1.5"]):
        assert "Expected" in str(CliRunner().invoke(main, [*args, *wrong]).exception)


def test_a_mask_that_does_not_fit_is_refused_by_name(tmp_path):
    root = folder_dataset(tmp_path / "d")
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(root / "masks" / "im1.png")
    dataset = open_dataset("folder", root)
    with pytest.raises(WsssError, match=r"im1.*image's size"):
        ablate(tiny_model(), dataset, [Setting("original")], BASE)
