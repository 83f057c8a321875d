"""`wsssfast train` as a user types it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner
from support import folder_dataset

from wsssfast.cli.main import main
from wsssfast.cli.train import train
from wsssfast.cli.training import _span
from wsssfast.errors import WsssError
from wsssfast.models.checkpoint import load_model

SMALL = [
    "--arch", "deit_tiny_patch16_224", "--image-size", "32", "--pretrained", "none", "--epochs",
    "2", "--batch-size", "4", "--warmup-epochs", "0.5", "--loader-workers", "0",
]  # fmt: skip


def run(*args):
    return CliRunner().invoke(main, ["train", *map(str, args)], catch_exceptions=True)


def test_train_on_a_folder_leaves_everything(tmp_path):
    root = folder_dataset(tmp_path / "d", sizes=((40, 32),) * 9)
    (root / "images" / "im5.png").write_bytes(b"no image")
    out = tmp_path / "run"
    args = ["--dataset", "folder", "--data-root", root, "--out", out, "--holdout", "4", *SMALL]
    done = run(*args, "--json", tmp_path / "r.json")
    assert done.exit_code == 3, done.output  # im5 cannot be read
    result = json.loads((tmp_path / "r.json").read_text())
    assert list(result["unreadable"]) == ["im5"]
    assert done.stderr.splitlines()[:2] == [
        "train: 6 images, 3 held out, batch size 4, 1 step an epoch, 2 epochs, 2 steps in all",
        "Only 2 steps in all: too few to learn from; give more --epochs or a smaller --batch-size.",
    ]
    assert done.stderr.endswith("1 input could not be read; the rest is done.\n")
    assert " min" not in done.output and "0 s left" in done.stderr
    assert [row["epoch"] for row in result["epochs"]] == [1, 2]
    assert set(result["epochs"][0]["scores"]) >= {"mAP", "mAP_patch", "AP"}
    assert (out / "held-out-ids.txt").read_text().split() == ["im0", "im4", "im8"]
    assert len((out / "train-ids.txt").read_text().split()) == 6
    assert load_model(out / "last.safetensors").config.class_names == ("cat", "dog", "cow")
    assert load_model(out / "best.safetensors").num_classes == 3
    settings = json.loads((out / "options.json").read_text())
    assert settings["epochs"] == 2 and settings["dataset"] == "folder" and settings["versions"]
    assert run(*args).exit_code == 3  # complete: nothing is done again
    refused = run(*args, "--no-resume")
    assert isinstance(refused.exception, WsssError)
    assert "--no-resume" in refused.exception.message
    assert run(*args, "--overwrite", "--epochs", "1").exit_code == 3


def test_recipe_below_config_below_flags(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text("jitter = 0.1\nepochs = 7\n")
    for order in (
        ["--recipe", "mctformer-voc", "--config", str(config)],
        ["--config", str(config), "--recipe", "mctformer-voc"],
    ):
        context = train.make_context("train", [*order, "--out", "x", "--epochs", "3"])
        chosen = context.params
        assert (chosen["epochs"], chosen["jitter"], chosen["erase"]) == (3, 0.1, 0.25)
        assert chosen["rand_augment"] == "rand-m9-mstd0.5-inc1"
        assert chosen["recipe"] == "mctformer-voc"
        assert chosen["pretrained"] == "timm"


def test_images_of_the_validation_split_are_not_trained_on(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text('val-split = "train:6"\nholdout = 0\n')  # an integer with a range
    out = tmp_path / "run"
    args = ["--dataset", "synthetic", "--split", "train:14", "--out", out, "--config", config]
    assert run(*args, *SMALL, "--epochs", "1").exit_code == 0
    trained = (out / "train-ids.txt").read_text().split()
    assert trained == [f"train_{n:05d}" for n in range(6, 14)]
    assert len((out / "held-out-ids.txt").read_text().split()) == 6


def test_overwrite_discards_nothing_before_all_options_are_checked(tmp_path):
    out = tmp_path / "run"
    args = ["--dataset", "synthetic", "--split", "train:8", "--out", out, *SMALL, "--epochs", "1"]
    assert run(*args).exit_code == 0
    before = (out / "last.safetensors").read_bytes()
    for wrong in (["--batch-size", "99"], ["--rand-augment", "x"], ["--resize", "16"]):
        assert isinstance(run(*args, "--overwrite", *wrong).exception, WsssError)
        assert (out / "last.safetensors").read_bytes() == before
        assert (out / "log.jsonl").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--val-split", "val", "--holdout", "3"], "--val-split or --holdout, found both"),
        (["--pretrained", "nowhere.pth"], "Expected weights at nowhere.pth, found none"),
        (["--rate", "-1"], "Expected rate between"),
        (["--arch", "resnet50"], "Expected a plain ViT"),
        (["--batch-size", "1000"], "one batch of 1000 images"),
    ],
)
def test_mistakes_are_one_line(tmp_path, args, message):
    out = tmp_path / "run"
    done = run("--dataset", "synthetic", "--split", "train:8", "--out", out, *SMALL, *args)
    assert isinstance(done.exception, WsssError), done.exception
    assert message in str(done.exception)
    assert not (out / "last.safetensors").exists()


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path):
    out = tmp_path / "run"
    args = [
        sys.executable, "-m", "wsssfast", "train", "--dataset", "synthetic", "--split", "train:40",
        "--out", str(out), *SMALL, "--epochs", "60", "--log-steps", "1",
    ]  # fmt: skip
    args[args.index("--loader-workers") + 1] = "1"
    process = subprocess.Popen(args, stderr=subprocess.PIPE, text=True, start_new_session=True)
    for _ in range(600):
        if (out / "log.jsonl").exists() and (out / "log.jsonl").stat().st_size > 500:
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to loader processes as well
    _, text = process.communicate(timeout=60)
    assert process.returncode == 4, text
    assert "Traceback" not in text
    assert "Run the same command again to continue." in text
    assert (out / "resume.safetensors").exists()
    assert (
        "train: 40 images, batch size 4, 10 steps an epoch, 60 epochs, 600 steps in all\n" in text
    )
    assert "too few" not in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (45, "45 s"), (119.4, "119 s"), (119.6, "2 min"), (153, "3 min"),
     (720, "12 min"), (11100, "3:05 h")],
)  # fmt: skip
def test_a_span_is_told_in_seconds_below_two_minutes(seconds, text):
    assert _span(seconds) == text
