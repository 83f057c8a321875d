"""`export-labels`, `evaluate labels`, and both kinds of shards in the other commands."""

import json

import numpy as np
import pytest
from PIL import Image
from support import bytes_of, folder_dataset, run_with_little_room, tiny_model

from wsssfast.models.checkpoint import save_model
from wsssfast.shards import CamRecord, LabelShards, write_cam_shard

IDENTITY = {"class_names": ["cat", "dog", "cow"], "stages": ["original", "final"], "scales": [1.0]}
SIZES = ((40, 32), (33, 47), (64, 24), (1, 1))  # (width, height) of im0 to im3


def write_cams(folder, index, numbers, failed=None):
    folder.mkdir(exist_ok=True)
    records = []
    for n in numbers:
        rng = np.random.RandomState(n)
        grids = {stage: [rng.rand(1, 4, 5).astype(np.float32)] for stage in IDENTITY["stages"]}
        records.append(CamRecord(f"im{n}", SIZES[n][::-1], (n % 3,), grids))
    write_cam_shard(
        folder, index, 2, records, failed=failed or {}, identity=IDENTITY,
        epsilons={"original": 1e-8, "final": 1e-8}, config={}, versions={},
    )  # fmt: skip


@pytest.fixture
def cams(tmp_path):
    write_cams(tmp_path / "cams", 0, [0, 1])
    write_cams(tmp_path / "cams", 1, [2, 3])
    return tmp_path / "cams"


@pytest.fixture
def data(tmp_path):
    return ["--dataset", "folder", "--data-root", folder_dataset(tmp_path / "data", SIZES)]


def test_labels_by_command_line(wsssfast, cams, data, tmp_path):
    out = tmp_path / "labels"
    code, text, err = wsssfast("export-labels", "--cams", cams, "--out", out, "--background", 0.4)
    assert (code, "4 masks" in text, "from the stage final" in text) == (0, True, True), err
    assert LabelShards(out).identity["stage"] == "final"
    code, text, _ = wsssfast("inspect", out, "--json", "-")
    found = json.loads(text)
    assert (code, found["kind"], found["images"]) == (0, "labels", 4)
    assert found["bytes"] == sum(path.stat().st_size for path in out.iterdir())
    assert "labels" in wsssfast("inspect", out)[1]
    assert wsssfast("verify", out)[0] == 0
    code, text, _ = wsssfast("evaluate", "labels", out, *data, "--json", "-")
    result = json.loads(text)
    assert code == 0
    assert {"miou", "per_class", "fp", "fn", "coverage", "absent_classes"} <= result.keys()
    assert (result["images"], result["coverage"], result["ignored"]) == (4, 1.0, "background")
    _, text, _ = wsssfast("evaluate", "cams", cams, *data, "--stage", "final", "--json", "-")
    assert dict(map(tuple, json.loads(text)["curve"]))[0.4] == result["miou"]
    code, text, _ = wsssfast("evaluate", "labels", out, *data)
    assert (code, f"{100 * result['miou']:.2f}" in text, "IoU per class" in text) == (0, True, True)


def test_two_thresholds_and_what_is_ignored(wsssfast, cams, data, tmp_path):
    out, config = tmp_path / "labels", tmp_path / "c.toml"
    config.write_text('background = [0.3, 0.6]\nstage = "original"\n')
    words = ["export-labels", "--cams", cams, "--out", out]
    code, _, err = wsssfast(*words, "--config", config, "--json", tmp_path / "s.json")
    assert code == 0, err
    assert LabelShards(out).identity["background"] == [0.3, 0.6]
    assert LabelShards(out).identity["stage"] == "original"
    summary = json.loads((tmp_path / "s.json").read_text())
    assert (summary["images"], summary["missing_shards"], summary["failed"]) == (4, [], {})
    mious = []
    for ignored in ("background", "skip"):
        code, text, _ = wsssfast(
            "evaluate", "labels", out, *data, "--ignored", ignored, "--json", "-"
        )
        result = json.loads(text)
        assert (code, result["ignored"], 0 < result["coverage"] < 1) == (0, ignored, True)
        mious.append(result["miou"])
    assert mious[0] != mious[1]
    code, _, err = wsssfast(*words, "--background", "0.5")
    assert (code, "background (there [0.3,0.6], now [0.5])" in err) == (2, True)
    code, _, err = wsssfast(*words, "--background", "0.5", "--no-resume")
    assert (code, "--no-resume" in err) == (2, True)
    assert wsssfast(*words, "--background", "0.5", "--overwrite")[0] == 0
    code, text, _ = wsssfast(*words, "--background", "0.50", "--stage", "final")
    assert (code, "2 were done" in text) == (0, True)


def test_missing_cam_shards_and_images_without_cam_are_told(wsssfast, cams, data, tmp_path):
    (cams / "cams-00000-of-00002.json").unlink()
    out = tmp_path / "labels"
    words = ["export-labels", "--cams", cams, "--out", out, "--background", "0.4"]
    code, text, err = wsssfast(*words)
    assert (code, "2 masks" in text) == (3, True)
    assert err.splitlines() == [
        f"Left out, as they are missing in {cams}: cams-00000-of-00002. Run export-cams again, "
        "then this command."
    ]
    code, _, err = wsssfast("evaluate", "labels", out, *data)
    assert (code, "Only 2 of the split's 4 images" in err, "1 shard missing" in err) == (
        3,
        True,
        True,
    )
    assert f"Left out, as they are missing in {out}: labels-00000-of-00002. Complete" in err
    assert wsssfast("verify", out)[0] == 2
    write_cams(cams, 0, [0], {"im1": "truncated"})
    code, text, err = wsssfast(*words)
    assert (code, "3 masks" in text, "unreadable: im1: truncated" in err) == (3, True, True)
    assert wsssfast("verify", out)[0] == 3


def test_each_kind_is_refused_where_the_other_is_needed(wsssfast, cams, data, tmp_path):
    out = tmp_path / "labels"
    assert wsssfast("export-labels", "--cams", cams, "--out", out, "--background", "0.4")[0] == 0
    for words, text in (
        (["evaluate", "cams", out, *data], "Expected CAM shards in"),
        (["convert", out, "--to", "npy", "--out", tmp_path / "n"], "found label shards"),
        (["export-labels", "--cams", out, "--out", tmp_path / "n", "--background", "0.4"],
         "Expected CAM shards in"),
        (["evaluate", "labels", cams, *data], "found CAM shards. Make them with `wsssfast export-"),
        (["export-labels", "--cams", cams, "--out", cams, "--background", "0.4"],
         "label shards alone"),
    ):  # fmt: skip
        code, shown, err = wsssfast(*words)
        assert (code, text in err, err.count("\n"), shown) == (2, True, 1, ""), err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "tells the best threshold"),
        (["--background", "low"], "numbers separated by commas"),
        (["--background", "0.6,0.4"], "the lower first, found 0.6,0.4"),
        (["--background", "0.4", "--stage", "modulated"], "a stage out of original, final"),
        (["--background", "0.4", "--refine", "magic"], "'magic' is not"),
        (["--background", "0.4", "--json", "no/where.json"], "no writable folder"),
    ],
)
def test_wrong_calls_get_one_line(wsssfast, cams, tmp_path, words, text):
    code, _, err = wsssfast("export-labels", "--cams", cams, "--out", tmp_path / "labels", *words)
    assert (code, text in err, err.count("\n")) == (2, True, 1), err
    assert not (tmp_path / "labels").exists()


def test_a_flipped_byte_is_found_and_a_mask_of_another_size_named(wsssfast, cams, data, tmp_path):
    out = tmp_path / "labels"
    assert wsssfast("export-labels", "--cams", cams, "--out", out, "--background", "0.4")[0] == 0
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(data[-1] / "masks" / "im2.png")
    code, _, err = wsssfast("evaluate", "labels", out, *data)
    assert (code, "im2: " in err, "found [5, 5]" in err) == (3, True, True)
    path = out / "labels-00001-of-00002.h5"
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    code, _, err = wsssfast("verify", out)
    assert (code, "labels-00001-of-00002.h5: its contents were changed" in err) == (2, True)


def test_a_full_disk_is_told_and_the_run_can_go_on(cams, tmp_path):
    out = tmp_path / "labels"
    words = ["export-labels", "--cams", cams, "--out", out, "--background", "0.4"]
    for limit, code in ((1000, 2), (10**7, 0)):
        found = run_with_little_room(limit, words)
        assert found.returncode == code, found.stderr
        if code:
            assert found.stderr.startswith("Error: Expected room") and found.stderr.count("\n") == 1
            assert [path.name for path in out.iterdir()] == [".wsssfast.lock"]
    assert len(LabelShards(out)) == 4


@pytest.fixture
def real_cams(wsssfast, data, tmp_path):
    """CAM shards that were made from the images of `data`, and their classifier."""
    save_model(tiny_model(), tmp_path / "model.safetensors")
    words = ["--checkpoint", tmp_path / "model.safetensors", "--shard-size", 2]
    assert wsssfast("export-cams", *data, *words, "--out", tmp_path / "real")[0] == 0
    return tmp_path / "real", words


def test_a_crf_from_shards_and_straight_from_images(wsssfast, real_cams, data, tmp_path):
    cams, network = real_cams
    method = ["--recipe", "mctformer", "--crf-workers", 1]
    out, straight = tmp_path / "labels", tmp_path / "straight"
    code, text, err = wsssfast("export-labels", "--cams", cams, *data, *method, "--out", out)
    assert (code, "4 masks" in text) == (0, True), err
    log = tmp_path / "log.jsonl"
    code, text, err = wsssfast(
        "export-labels", *network, *data, *method, "--out", straight, "--log", log
    )
    assert (code, "4 masks" in text, "from the stage final" in text) == (0, True, True), err
    assert bytes_of(out, "*.h5") == bytes_of(straight, "*.h5")
    assert LabelShards(out).identity == LabelShards(straight).identity
    assert LabelShards(out).identity["background_exponent"] == [1, 12]
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert (events[0], events[-1], events.count("shard")) == ("begin", "end", 2)
    words = ["--recipe", "mctformer", "--background", 0.4, "--crf-workers", 1]  # a flag wins
    wsssfast("export-labels", "--cams", cams, *data, *words, "--out", tmp_path / "flag")
    assert LabelShards(tmp_path / "flag").identity["background"] == [0.4]
    for worker in (0, 1):
        words = [*method, "--out", tmp_path / "two", "--worker", f"{worker}/2"]
        assert wsssfast("export-labels", "--cams", cams, *data, *words)[0] == 0
    assert bytes_of(out, "labels*") == bytes_of(tmp_path / "two", "labels*")


@pytest.mark.parametrize("recipe", ["mctformer-a1", "mctformer-a12", "test", "irn"])
def test_every_recipe_and_a_constant_of_one_s_own(wsssfast, real_cams, data, tmp_path, recipe):
    words = ["export-labels", "--cams", real_cams[0], *data, "--recipe", recipe, "--crf-workers",
             1, "--crf-iterations", 2, "--gaussian-compat", 4]  # fmt: skip
    words += ["--background", 0.4] if recipe == "test" else []
    code, _, err = wsssfast(*words, "--out", tmp_path / "labels")
    assert code == 0, err
    identity = LabelShards(tmp_path / "labels").identity
    constants = [identity[f"crf_{key}"] for key in (
        "gaussian_sxy", "gaussian_compat", "bilateral_sxy", "bilateral_srgb", "bilateral_compat",
        "iterations",
    )]  # fmt: skip
    assert constants == {
        "test": [4, 4, 83, 5, 3, 2], "irn": [3, 4, 50, 5, 10, 2]
    }.get(recipe, [3, 4, 80, 13, 10, 2])  # fmt: skip
    assert identity.get("certainty") == (0.7 if recipe == "irn" else None)


def test_wrong_calls_of_a_crf_get_one_line(wsssfast, real_cams, data, tmp_path):
    cams, network = real_cams
    other = ["--dataset", "synthetic", "--split", "val:3"]
    crf = ["--refine", "crf", "--background", "0.4"]
    for words, told in (
        (["--cams", cams, *network[:2], *crf], "found both"),
        (crf, "Expected --cams or --checkpoint, found neither"),
        (["--cams", cams, *other, *crf], "found other images or labels"),
        (["--cams", cams, *data, *crf, "--alpha", 2], "--alpha together with --checkpoint"),
        (["--cams", cams, *crf[2:], "--labels", "x.csv"], "--labels together with --refine crf"),
        (["--cams", cams, *crf[2:], "--certainty", 0.7], "--certainty together with"),
        ([*network[:2], "--shard-size", 0, *data, *crf], "a shard size of at least 1"),
        (["--cams", cams, *data, *crf, "--gaussian-sxy", 1e-6], "larger standard deviations"),
        (["--cams", cams, *data, *crf, "--bilateral-srgb", 0], "standard deviations above 0"),
        (["--cams", cams, *data, *crf, "--background-exponent", 4], "found both"),
    ):
        code, _, err = wsssfast("export-labels", *words, "--out", tmp_path / "n")
        assert (code, told in err, err.count("\n")) == (2, True, 1), err
    assert not list(tmp_path.glob("n/*.h5"))
    (tmp_path / "data" / "images" / "im1.png").write_bytes(b"no image")
    words = ["--cams", cams, *data, *crf, "--crf-workers", 1, "--out", tmp_path / "n"]
    code, text, err = wsssfast("export-labels", *words)
    assert (code, "3 masks" in text, "unreadable: im1: " in err) == (3, True, True), err
