"""`train-affinity`, and `export-labels` that walks over what it leaves."""

import json

import pytest
from support import bytes_of, folder_dataset, tiny_model

from wsssfast.models.checkpoint import load_affinity, save_model
from wsssfast.shards import LabelShards

SIZES = ((90, 80), (80, 90), (60, 47), (104, 96))
SHORT = ["--epochs", "1", "--batch-size", "2", "--crop", "72", "--loader-workers", "0"]


@pytest.fixture
def made(wsssfast, tmp_path):
    """Options of a data set, a classifier's checkpoint and the CAMs that it gives."""
    root = folder_dataset(tmp_path / "data", SIZES)
    data = ["--dataset", "folder", "--data-root", root]
    save_model(tiny_model(classes=("cat", "dog", "cow")), tmp_path / "c.safetensors")
    code, _, err = wsssfast(
        "export-cams", *data, "--checkpoint", tmp_path / "c.safetensors",
        "--out", tmp_path / "cams",
    )  # fmt: skip
    assert code == 0, err
    return data, tmp_path / "c.safetensors", tmp_path / "cams"


def train(made, out, *more):
    data, classifier, cams = made
    return ["train-affinity", "--cams", cams, *data, "--out", out, "--trunk", "vit",
            "--pretrained", classifier, *SHORT, *more]  # fmt: skip


def test_from_cams_to_walked_labels(wsssfast, made, tmp_path):
    data, classifier, cams = made
    run = tmp_path / "run"
    code, text, err = wsssfast(*train(made, run))
    assert (code, "last.safetensors" in text) == (0, True), err
    assert load_affinity(run / "last.safetensors").config.class_names == ("cat", "dog", "cow")
    assert LabelShards(run / "cells").identity["background_exponent"] == [1.0, 12.0]
    before = bytes_of(run / "cells"), (run / "last.safetensors").read_bytes()
    assert wsssfast(*train(made, run))[0] == 0  # nothing is left to do
    assert (bytes_of(run / "cells"), (run / "last.safetensors").read_bytes()) == before
    code, _, err = wsssfast(*train(made, run, "--bilateral-srgb", 5))
    assert code == 2 and "crf_bilateral_srgb" in err
    assert wsssfast(*train(made, run, "--overwrite", "--refine", "none"))[0] == 0

    walk = ["--refine", "affinity", "--affinity", run / "last.safetensors", "--background", 0.4]
    out = tmp_path / "walked"
    code, text, err = wsssfast("export-labels", "--cams", cams, *data, *walk, "--out", out)
    assert (code, "4 masks" in text) == (0, True), err
    identity = LabelShards(out).identity
    assert (identity["refine"], identity["walk_beta"], identity["walk_steps"]) == (
        "affinity",
        8,
        64,
    )
    straight = tmp_path / "straight"
    code, _, err = wsssfast(
        "export-labels", "--checkpoint", classifier, *data, *walk, "--out", straight
    )
    assert code == 0, err
    assert bytes_of(out, "*.h5") == bytes_of(straight, "*.h5")
    code, text, _ = wsssfast("evaluate", "labels", out, *data, "--json", "-")
    assert (code, json.loads(text)["images"]) == (0, 4)
    assert wsssfast("convert", out, "--to", "png", "--out", tmp_path / "png")[0] == 0
    assert len(list((tmp_path / "png").glob("*.png"))) == 4
    code, _, err = wsssfast(
        "report", "--cams", cams, *data, "--label-shards", out, "--out", tmp_path / "r.html"
    )
    assert code == 0, err
    code, _, err = wsssfast(
        "export-labels", "--checkpoint", classifier, *data, "--recipe", "psa-walk",
        "--affinity", "vit", "--out", tmp_path / "vit",
    )  # fmt: skip
    assert code == 0, err
    identity = LabelShards(tmp_path / "vit").identity
    assert (identity["walk_by"], identity["walk_steps"]) == ("vit", 256)


def test_an_image_that_cannot_be_read_is_listed(wsssfast, made, tmp_path):
    data, _, _ = made
    (data[-1] / "images" / "im1.png").write_bytes(b"no image")
    code, _, err = wsssfast(*train(made, tmp_path / "run"))
    assert code == 3 and "im1" in err
    run = tmp_path / "run" / "last.safetensors"
    code, text, err = wsssfast(
        "export-labels", "--cams", made[2], *data, "--refine", "affinity", "--affinity", run,
        "--background", 0.4, "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 3 and "3 masks" in text and "im1" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--trunk", "resnet38"], "Expected weights of ResNet38, which timm does not provide"),
        (["--trunk", "resnet38", "--pretrained", "none.pth"], "found none"),
        (["--trunk", "vit"], "Expected a classifier that the trunk vit starts from"),
        (["--trunk", "vit", "--pretrained", "none.pth"], "Expected a checkpoint at none.pth"),
        (["--trunk", "no_such_net", "--pretrained", "none"], "convolutional network of timm"),
        (["--trunk", "vit", "--crop", "100"], "multiple of 8"),
        (["--stage", "original"], "original"),
        (["--background", "0.3", "--background-exponent", "2"], "found both"),
    ],
)  # fmt: skip
def test_what_it_cannot_train_on_is_refused(wsssfast, made, tmp_path, words, told):
    data, classifier, cams = made
    given = ["--pretrained", classifier, "--trunk", "vit"] if "--trunk" not in words else []
    code, _, err = wsssfast(
        "train-affinity", "--cams", cams, *data, "--out", tmp_path / "run", *SHORT, *given, *words
    )
    assert (code, err.count("\n"), told in err) == (2, 1, True), err


def test_a_network_of_another_kind_or_set_is_refused(wsssfast, made, tmp_path):
    data, classifier, cams = made
    other = ["--dataset", "folder", "--data-root", folder_dataset(tmp_path / "other", SIZES[:2])]
    code, _, err = wsssfast(
        "train-affinity", "--cams", cams, *other, "--out", tmp_path / "run", "--trunk", "vit",
        "--pretrained", classifier, *SHORT,
    )  # fmt: skip
    assert code == 2 and "Expected the data set that the CAMs" in err
    base = ["export-labels", "--cams", cams, "--background", 0.4, "--out", tmp_path / "out"]
    for words, told in (
        (["--refine", "affinity", "--affinity", classifier, *data], "Expected a affinity"),
        (["--refine", "affinity", "--affinity", tmp_path / "no", *data], "found none"),
        (["--refine", "affinity", *data], "Expected an affinity for the refinement affinity"),
        (["--refine", "affinity", "--affinity", "vit"], "found CAM shards"),
        (["--affinity", "vit"], "together with --refine affinity"),
        (["--refine", "affinity", "--affinity", "vit", "--certainty", "0.7"], "--certainty"),
        (["--refine", "affinity", "--affinity", "vit", "--walk-beta", "0"], "beta above 0"),
    ):
        code, _, err = wsssfast(*base, *words)
        assert (code, err.count("\n"), told in err) == (2, 1, True), err
