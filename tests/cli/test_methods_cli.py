"""Methods beside the paper's, from training to CAMs, by their recipes."""

import pytest

from wsssfast.models.checkpoint import load_model
from wsssfast.shards import open_shards

SMALL = [
    "--arch", "test_vit", "--pretrained", "none", "--image-size", 32, "--epochs", 1,
    "--batch-size", 4, "--warmup-epochs", 0, "--loader-workers", 0, "--precision", "fp32",
]  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "exports"),
    [
        ("mctformer-v1-voc", ["mctformer-v1"]),
        ("mctformer-voc", ["mctformer-v2", "both-ways"]),
        ("mctformer-plus-voc", ["mctformer-plus"]),
        ("ts-cam-voc", ["ts-cam", "patch-cam"]),
        ("weaktr-voc", ["weaktr"]),
    ],
)
def test_from_training_to_maps(wsssfast, tmp_path, recipe, exports):
    run = tmp_path / "run"
    code, _, err = wsssfast(
        "train",
        "--dataset",
        "synthetic",
        "--split",
        "train:8",
        "--recipe",
        recipe,
        *SMALL,
        "--out",
        run,
    )
    assert code == 0, err
    config = load_model(run / "last.safetensors").config
    assert config.patch_head == (recipe != "mctformer-v1-voc")
    assert config.one_token == (recipe == "ts-cam-voc")
    assert config.adaptive_fusion == (recipe == "weaktr-voc")
    assert config.split_positions == (recipe == "mctformer-plus-voc")
    for name in exports:
        out = tmp_path / name
        code, _, err = wsssfast("export-cams",
            "--dataset", "synthetic", "--split", "train:4", "--recipe", name,
                                "--checkpoint", run / "last.safetensors", "--out", out)  # fmt: skip
        assert code == 0, err
        told = open_shards(out).identity
        assert told["fuse"] == ("sqrt" if name == "mctformer-plus" else "product")
        stages = {"ts-cam": "original+c2p", "patch-cam": "original", "both-ways": "final"}
        assert told["stages"] == [stages.get(name, "original+c2p+p2p")]
        assert told["propagation"] == ("geometric" if name == "both-ways" else "gather")
