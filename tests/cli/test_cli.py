"""The command line: help, exit codes, one clear line for every mistake, nothing half-written."""

import json
import os
import pickle
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from support import folder_dataset, tiny_model

from wsssfast.cli.main import COMMANDS
from wsssfast.models.checkpoint import save_model

HELP = [[name] for name in COMMANDS] + [
    ["dataset", "check"],
    ["dataset", "stats"],
    ["dataset", "synth"],
    ["evaluate", "cams"],
    ["evaluate", "labels"],
]


@pytest.fixture
def setup(tmp_path):
    """A folder data set and a classifier for it: the options of a good export."""
    root = folder_dataset(tmp_path / "data")
    save_model(tiny_model(), tmp_path / "model.safetensors")
    return {
        "--dataset": "folder",
        "--data-root": root,
        "--checkpoint": tmp_path / "model.safetensors",
        "--out": tmp_path / "cams",
    }


def words(options):
    return [word for pair in options.items() for word in pair]


@pytest.mark.parametrize("command", HELP, ids=" ".join)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_has_help_with_an_example(wsssfast, command, flag):
    code, out, _ = wsssfast(*command, flag)
    assert code == 0
    assert out.startswith("Usage: wsssfast")
    assert "Example:\n    wsssfast " in out


WRONG_PATHS = [
    ["export-cams", "--checkpoint", "no", "--dataset", "synthetic", "--out", "out"],
    ["export-labels", "--cams", "no", "--out", "out"],
    ["train-affinity", "--cams", "no", "--dataset", "synthetic", "--out", "out"],
    ["train-seg", "--label-shards", "no", "--dataset", "synthetic", "--out", "out"],
    ["predict", "--checkpoint", "no", "--dataset", "synthetic", "--out", "out"],
    ["evaluate", "cams", "no", "--dataset", "synthetic"],
    ["evaluate", "labels", "no", "--dataset", "synthetic"],
    ["train", "--dataset", "folder", "--data-root", "no", "--out", "out"],
    ["verify", "no"],
]


@pytest.mark.parametrize(
    ("command", "told"),
    [(["export-cams", "-h"], ""), *((command, "no, found none.") for command in WRONG_PATHS)],
)
def test_help_and_wrong_paths_do_not_wait_for_torch(command, told, tmp_path):
    code = (
        f"import sys; sys.argv = ['wsssfast', *{command}]\n"
        "from wsssfast.cli.main import run\n"
        "try:\n    run()\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'h5py' not in sys.modules"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert told in found.stderr and found.stderr.count("\n") == bool(told)


def test_the_pipeline_by_command_line(wsssfast, setup, tmp_path):
    code, out, err = wsssfast("export-cams", *words(setup), "--stage", "original,final")
    assert (code, "4 images" in out) == (0, True), err
    code, out, _ = wsssfast("inspect", setup["--out"], "--json", "-")
    assert (code, json.loads(out)["images"]) == (0, 4)
    assert wsssfast("verify", setup["--out"])[0] == 0
    data = ["--dataset", "folder", "--data-root", setup["--data-root"]]
    code, out, _ = wsssfast("evaluate", "cams", setup["--out"], *data, "--json", "-")
    scores = json.loads(out)["stages"]
    assert (code, list(scores)) == (0, ["original", "final"])
    code, out, _ = wsssfast(
        "evaluate", "cams", setup["--out"], *data, "--stage", "final", "--json", "-"
    )
    one = json.loads(out)
    assert {"miou", "threshold", "per_class", "curve"} <= one.keys()
    assert one["miou"] == scores["final"]["miou"]
    assert len(one["curve"]) == 60
    for target in ("npy", "irn"):
        assert (
            wsssfast("convert", setup["--out"], "--to", target, "--out", tmp_path / target)[0] == 0
        )
    code, out, err = wsssfast(
        "convert", tmp_path / "npy", "--to", "shards", "--out", tmp_path / "back",
        "--classes", setup["--data-root"] / "classes.txt",
    )  # fmt: skip
    assert code == 0, err
    assert wsssfast("verify", tmp_path / "back")[0] == 0


def test_doctor_names_what_is_used(wsssfast):
    code, out, _ = wsssfast("doctor", "--json", "-")
    found = json.loads(out)
    assert code == 0
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"]
    assert found["device used"] in ("cpu", "cuda")


def test_synthetic_scenes_can_be_written_and_checked(wsssfast, tmp_path):
    assert wsssfast("dataset", "synth", "--out", tmp_path / "s", "--split", "train:5")[0] == 0
    code, out, _ = wsssfast(
        "dataset", "check", "--dataset", "folder", "--data-root", tmp_path / "s", "--json", "-"
    )
    assert (code, json.loads(out)["images"]) == (0, 5)
    code, _, err = wsssfast("dataset", "synth", "--out", tmp_path / "s")
    assert (code, "empty or new folder" in err) == (2, True)


def test_images_without_labels_are_checked_alone(wsssfast, setup, tmp_path):
    (setup["--data-root"] / "labels.csv").unlink()
    words = ["dataset", "check", "--dataset", "folder", "--data-root", setup["--data-root"]]
    code, _, err = wsssfast(*words)
    assert (code, "labels.csv, found none. --labels none does without" in err) == (2, True)
    code, out, err = wsssfast(*words, "--labels", "none")
    assert (code, err) == (0, "")
    assert out.startswith("4 images: 0 with several labels, 4 with none.\nWidth 33-64")


def test_config_files_give_defaults_that_flags_override(wsssfast, setup, tmp_path):
    config = tmp_path / "c.toml"
    config.write_text('ratio = 0.5\nscales = [1.0, 0.5]\npropagation = "scatter"\nflip = false\n')
    code, _, err = wsssfast("export-cams", *words(setup), "--config", config, "--ratio", "0.2")
    assert code == 0, err
    _, out, _ = wsssfast("inspect", setup["--out"], "--json", "-")
    identity = json.loads(out)["identity"]
    assert identity["ratio"] == 0.2
    assert identity["scales"] == [1.0, 0.5]
    assert (identity["propagation"], identity["flip"]) == ("scatter", False)
    for wrong, text in (
        ("ration = 0.5", "Unknown key 'ration'"), ("ratio = true", "ratio in"),
        ("[ratio]", "found the section [ratio]"), ("flip = 3", "to be of type bool"),
        ("split = 3", "to be of type str"), ("shard-size = 1.5", "to be of type int"),
        ("batch-size = 1.5", "at least 1, or auto, found '1.5'"),
        ("out = ['a']", "to be of type str"), ("ratio = ", "Expected a TOML file"),
    ):  # fmt: skip
        config.write_text(wrong + "\n")
        code, _, err = wsssfast("export-cams", *words(setup), "--config", config)
        assert (code, text in err, err.count("\n")) == (2, True, 1), err


def test_a_part_of_what_was_exported_can_be_scored_and_a_mask_that_does_not_fit_is_listed(
    wsssfast, setup, tmp_path
):
    assert wsssfast("export-cams", *words(setup))[0] == 0
    root, labels = setup["--data-root"], tmp_path / "labels"
    data = ["--dataset", "folder", "--data-root", root]
    assert (
        wsssfast(
            "export-labels", "--cams", setup["--out"], *data, "--background", "0.4", "--out", labels
        )[0]
        == 0
    )  # what is not needed does no harm
    (tmp_path / "list.txt").write_text("im0\nim2.png\n")
    part = [*data, "--split", tmp_path / "list.txt"]
    for command, folder in (("cams", setup["--out"]), ("labels", labels), ("seg", labels)):
        code, out, err = wsssfast("evaluate", command, folder, *part, "--json", "-")
        found = json.loads(out)
        assert (code, found["images"], found["images_of_others"]) == (0, 2, 2), err
        assert err == "Not scored, as the split does not have them: 2 images.\n"
    Image.new("L", (7, 5)).save(root / "masks" / "im2.png")
    for command, folder in (("cams", setup["--out"]), ("labels", labels), ("seg", labels)):
        code, out, err = wsssfast("evaluate", command, folder, *part, "--json", "-")
        assert (code, json.loads(out)["images"]) == (3, 1)
        told = "prediction: 33x47 pixels" if command == "seg" else "Expected a mask of the image's"
        assert f"unreadable: im2: {told}" in err
    (tmp_path / "list.txt").write_text("im2\n")
    code, _, err = wsssfast("evaluate", "labels", labels, *part)
    assert (code, "found none for 1 image. im2: Expected a mask of the image's size" in err) == (
        2,
        True,
    )
    (root / "classes.txt").write_text("dog\ncat\ncow\n")
    code, _, err = wsssfast("evaluate", "labels", labels, *data)
    assert (code, "data set's 3 classes, found them in another order" in err) == (2, True)


def test_the_batch_size_may_be_left_to_the_program(wsssfast, setup, tmp_path):
    config = tmp_path / "c.toml"
    for text in ("batch-size = 2\n", 'batch-size = "auto"\n'):
        config.write_text(text)
        assert wsssfast("export-cams", *words(setup), "--config", config)[0] == 0
    for wrong in ("0", "-1", "many", "1.5"):
        code, _, err = wsssfast("export-cams", *words(setup), "--batch-size", wrong)
        assert (code, "at least 1, or auto" in err, err.count("\n")) == (2, True, 1), err


def test_images_without_labels_get_what_the_classifier_sees(wsssfast, setup, tmp_path):
    (setup["--data-root"] / "labels.csv").unlink()
    log = tmp_path / "log.jsonl"
    out = tmp_path / "predicted"
    more = ["--labels", "predicted", "--predict-above", "0", "--log", log]
    code, text, err = wsssfast("export-cams", *words({**setup, "--out": out}), *more)
    assert code == 0, err
    assert "what the classifier gives a score above 0" in text
    _, text, _ = wsssfast("inspect", out, "--json", "-")
    identity = json.loads(text)["identity"]
    assert (identity["labels"], identity["predict_above"]) == ("predicted", 0.0)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["begin", "shard", "end"]
    assert lines[0]["config"]["labels"] == "classes that the classifier gives a score above 0"
    more[3] = "1.5"
    code, _, err = wsssfast("export-cams", *words({**setup, "--out": out}), *more)
    assert (code, "between 0 and 1" in err, err.count("\n")) == (2, True, 1), err


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def missing_root(options, tmp):
    options["--data-root"] = tmp / "nowhere"


def empty_split(options, tmp):
    (tmp / "none.txt").write_text("\n")
    options["--split"] = tmp / "none.txt"


def unknown_class(options, tmp):
    (tmp / "l.csv").write_text("image,labels\n" + "".join(f"im{n}.png,yak\n" for n in range(4)))
    options["--labels"] = tmp / "l.csv"


def image_without_label(options, tmp):
    (tmp / "l.csv").write_text("image,labels\nim0.png,cat\n")
    options["--labels"] = tmp / "l.csv"


def label_of_an_unknown_id(options, tmp):
    rows = (options["--data-root"] / "labels.csv").read_text()
    (tmp / "l.csv").write_text(rows + "im77.png,cat\n")
    options["--labels"] = tmp / "l.csv"


def backbone_in_place_of_a_classifier(options, tmp):
    state = {"cls_token": torch.zeros(1, 1, 192), "pos_embed": torch.zeros(1, 197, 192),
             "patch_embed.proj.weight": torch.zeros(192, 3, 16, 16),
             "blocks.0.mlp.fc1.weight": torch.zeros(768, 192),
             "head.weight": torch.zeros(1000, 192)}  # fmt: skip
    torch.save({"model": state}, tmp / "deit.pth")
    options["--checkpoint"] = tmp / "deit.pth"


def checkpoint_that_runs_code(options, tmp):
    torch.save({"model": {"x": Bomb(tmp / "was_here")}}, tmp / "evil.pth")
    options["--checkpoint"] = tmp / "evil.pth"


def labels_that_run_code(options, tmp):
    (tmp / "evil.npy").write_bytes(npy_header() + pickle.dumps(Bomb(tmp / "was_here")))
    options["--labels"] = tmp / "evil.npy"


def npy_header():
    text = "{'descr': '|O', 'fortran_order': False, 'shape': (), }"
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


MISTAKES = {
    missing_root: "Expected a data folder",
    empty_split: "is empty",
    unknown_class: "Unknown class 'yak'",
    image_without_label: "found none for im1, im2, im3",
    label_of_an_unknown_id: "unknown id im77",
    backbone_in_place_of_a_classifier: "found ImageNet backbone weights",
    checkpoint_that_runs_code: "Expected a file of weights",
    labels_that_run_code: "system, which is code",
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda f: f.__name__)
def test_mistakes_get_one_line_and_code_2(wsssfast, setup, tmp_path, mistake):
    mistake(setup, tmp_path)
    code, out, err = wsssfast("export-cams", *words(setup))
    assert code == 2
    assert MISTAKES[mistake] in err
    assert err.startswith("Error: ") and err.count("\n") == 1, err
    assert out == ""
    assert not setup["--out"].exists()
    assert not (tmp_path / "was_here").exists()


def test_another_configuration_names_the_key(wsssfast, setup):
    assert wsssfast("export-cams", *words(setup))[0] == 0
    code, _, err = wsssfast("export-cams", *words(setup), "--alpha", "0.5")
    assert (code, "alpha (there 1.2, now 0.5)" in err) == (2, True)


def test_a_mask_of_another_size_is_named(wsssfast, setup, tmp_path):
    assert wsssfast("export-cams", *words(setup))[0] == 0
    path = setup["--data-root"] / "masks" / "im2.png"
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(path)
    data = ["--dataset", "folder", "--data-root", setup["--data-root"]]
    scores = tmp_path / "scores.json"
    code, _, err = wsssfast("evaluate", "cams", setup["--out"], *data, "--json", scores)
    assert (code, json.loads(scores.read_text())["images"]) == (3, 3)
    assert "unreadable: im2: Expected a mask" in err and "found [5, 5]" in err
    code, _, err = wsssfast("dataset", "check", *data)
    assert (code, "mask of 5x5" in err) == (2, True)


def test_an_external_link_is_refused(wsssfast, setup, tmp_path):
    assert wsssfast("export-cams", *words(setup))[0] == 0
    path = setup["--out"] / "cams-00000-of-00001.h5"
    with h5py.File(path, "r+") as file:
        del file["labels"]
        file["labels"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/labels")
    data = ["--dataset", "folder", "--data-root", setup["--data-root"]]
    code, _, err = wsssfast("evaluate", "cams", setup["--out"], *data)
    assert (code, "ExternalLink, which points elsewhere" in err) == (2, True)
    assert wsssfast("verify", setup["--out"])[0] == 2


def test_a_truncated_jpeg_is_listed_and_the_rest_done(wsssfast, tmp_path):
    root = folder_dataset(tmp_path / "data", extension="jpg")
    path = root / "images" / "im1.jpg"
    path.write_bytes(path.read_bytes()[:400])
    save_model(tiny_model(), tmp_path / "m.safetensors")
    options = ["--dataset", "folder", "--data-root", root]
    code, out, err = wsssfast(
        "export-cams", *options, "--checkpoint", tmp_path / "m.safetensors",
        "--out", tmp_path / "cams",
    )  # fmt: skip
    assert (code, "3 images" in out) == (3, True)
    assert "unreadable: im1: " in err and "1 input could not be read" in err
    assert wsssfast("verify", tmp_path / "cams")[0] == 3
    assert wsssfast("evaluate", "cams", tmp_path / "cams", *options)[0] == 3
    assert wsssfast("dataset", "check", *options)[0] == 3


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["exprot-cams"], "No such command 'exprot-cams'. Did you mean 'export-cams'?"),
        (["zzz"], "No such command 'zzz'."),
        (["export-cams", "--out", "x"], "Missing option '--checkpoint'"),
        (
            ["export-cams", "--checkpoint", ".", "--out", "y", "--scales", "big"],
            "numbers separated",
        ),
        (["export-cams", "--checkpoint", ".", "--out", "y", "--stage", "last"], "Expected stages"),
        (["inspect", "nowhere"], "Expected a folder of shards"),
        (["dataset", "check", "--dataset", "voc"], "--data-root"),
        (["dataset", "check", "--split", "test"], "no --dataset"),
        (["dataset", "check", "--dataset", "synthetic", "--split", "test"], "train or val"),
        (["convert", ".", "--to", "shards", "--out", "y"], "--classes"),
        (["demo", "--seed", "-1"], "-1"),
        (["doctor", "--json", "no/where.json"], "no writable folder"),
        (["export-cams", "--checkpoint", ".", "--out", "y"], "Expected a checkpoint"),
    ],
)
def test_wrong_calls_get_one_line(wsssfast, arguments, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = wsssfast(*arguments)
    assert (code, text in err, err.count("\n")) == (2, True, 1), err
    assert list(tmp_path.iterdir()) == []
