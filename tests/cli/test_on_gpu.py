"""Every stage on a GPU against the same command on the CPU; `benchmarks/gpu.sh` runs it.

`WSSSFAST_TESTS_ON=cpu` runs it where there is none, to try the tests themselves.
"""

import os

import numpy as np
import pytest
import torch
from support import tiny_config, tiny_model

from wsssfast.data import open_dataset
from wsssfast.kernels import STAGES
from wsssfast.models.affinity import AffinityConfig, AffinityNet
from wsssfast.models.checkpoint import save_model
from wsssfast.shards import CamShards, LabelShards
from wsssfast.training.logs import read_log

pytestmark = pytest.mark.gpu
PLACE = os.environ.get("WSSSFAST_TESTS_ON", "cuda")
SPLIT = ["--dataset", "synthetic", "--split", "val:12"]
SHORT = [
    "--dataset", "synthetic", "--split", "train:32",
    "--epochs", 2, "--batch-size", 8, "--loader-workers", 1,
    "--warmup-epochs", 0,
]  # fmt: skip


@pytest.fixture
def run(wsssfast):
    """Run a command that must end well."""

    def call(*words):
        code, _, err = wsssfast(*words)
        assert code == 0, err

    return call


@pytest.fixture
def classifier(tmp_path):
    names = open_dataset("synthetic", split="val:1").class_names
    save_model(tiny_model(classes=names), tmp_path / "classifier.safetensors")
    return tmp_path / "classifier.safetensors"


def agreement(first, second):
    """Share of the pixels on which two folders of label shards agree."""
    same = [(first.mask(i) == second.mask(i)).mean() for i in first.ids]
    assert first.ids == second.ids and len(same) == 12
    return float(np.mean(same))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cams_are_those_of_the_cpu(run, classifier, tmp_path, precision):
    words = ["export-cams", "--checkpoint", classifier, *SPLIT, "--stage", ",".join(STAGES)]
    run(*words, "--device", "cpu", "--out", tmp_path / "cpu")
    run(*words, "--device", PLACE, "--precision", precision, "--out", tmp_path / "gpu")
    cpu, gpu = CamShards(tmp_path / "cpu"), CamShards(tmp_path / "gpu")
    off = [np.abs(cpu.cam(i, stage)[1] - gpu.cam(i, stage)[1]) for i in cpu.ids for stage in STAGES]
    off = np.concatenate([each.ravel() for each in off])
    # bfloat16 rounds to 1/256; a patch that ties for the last place in the selection moves a map
    close, share = (1e-3, 0.999) if precision == "fp32" else (0.1, 0.95)
    assert (off <= close).mean() >= share, np.quantile(off, [0.5, 0.95, 0.999])


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_labels_are_those_of_the_cpu(run, classifier, tmp_path, backend):
    names = open_dataset("synthetic", split="val:1").class_names
    torch.manual_seed(0)
    network = tmp_path / "affinity.safetensors"
    save_model(AffinityNet(AffinityConfig(names, "vit", tiny_config(names))), network)
    run("export-cams", "--checkpoint", classifier, *SPLIT, "--device", "cpu",
        "--out", tmp_path / "cams")  # fmt: skip
    words = [
        "export-labels", "--cams", tmp_path / "cams", *SPLIT, "--dataset", "synthetic",
        "--refine", "affinity+crf", "--affinity", network, "--background", 0.4,
    ]  # fmt: skip
    run(*words, "--device", "cpu", "--crf-backend", "torch", "--out", tmp_path / "cpu")
    run(*words, "--device", PLACE, "--crf-backend", backend, "--out", tmp_path / "gpu")
    assert agreement(LabelShards(tmp_path / "cpu"), LabelShards(tmp_path / "gpu")) > 0.999


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_classifier_trains(run, tmp_path, precision):
    words = ["train", *SHORT, "--arch", "deit_tiny_patch16_224", "--pretrained", "none",
             "--image-size", 64]  # fmt: skip
    run(*words, "--device", PLACE, "--precision", precision, "--out", tmp_path / "gpu")
    run(*words, "--device", "cpu", "--out", tmp_path / "cpu")
    assert_alike(tmp_path, precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_affinities_segmenter_and_masks(run, classifier, tmp_path, precision):
    run("export-cams", "--checkpoint", classifier,
        "--dataset", "synthetic", "--split", "train:32", "--device", PLACE,
        "--out", tmp_path / "cams")  # fmt: skip
    run("export-labels", "--cams", tmp_path / "cams", "--background", 0.3,
        "--out", tmp_path / "labels")  # fmt: skip
    start = ["--trunk", "vit", "--pretrained", classifier, "--crop", 96]
    run("train-affinity", *SHORT, "--cams", tmp_path / "cams", "--refine", "none", *start,
        "--precision", precision, "--device", PLACE, "--out", tmp_path / "affinity")  # fmt: skip
    words = ["train-seg", *SHORT, "--label-shards", tmp_path / "labels", *start]
    run(*words, "--device", PLACE, "--precision", precision, "--out", tmp_path / "gpu")
    run(*words, "--device", "cpu", "--out", tmp_path / "cpu")
    assert_alike(tmp_path, precision)
    words = [
        "predict", "--checkpoint", tmp_path / "cpu" / "last.safetensors", *SPLIT,
        "--recipe", "paper",
    ]  # fmt: skip
    run(*words, "--device", "cpu", "--out", tmp_path / "masks-cpu")
    run(*words, "--device", PLACE, "--precision", precision, "--out", tmp_path / "masks-gpu")
    found = agreement(LabelShards(tmp_path / "masks-cpu"), LabelShards(tmp_path / "masks-gpu"))
    assert found > (0.999 if precision == "fp32" else 0.98)


def assert_alike(folder, precision):
    """The losses on the GPU are those on the CPU, as nearly as the precision allows."""
    losses = [
        [row["loss"] for row in read_log(folder / name) if "loss" in row] for name in ("cpu", "gpu")
    ]
    assert len(losses[0]) == 8 and np.isfinite(losses).all()
    near = 1e-3 if precision == "fp32" else 3e-2
    np.testing.assert_allclose(*losses, rtol=near)
