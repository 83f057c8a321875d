"""`wsssfast inspect` and `wsssfast verify`: what made the shards, and folders without any."""

import json

import numpy as np
import pytest
from support import random_image

from wsssfast.shards import LabelRecord, write_label_shard

HASH = "0123456789abcdef" * 4


@pytest.fixture
def folder(tmp_path):
    """Label shards as `export-labels` writes them."""
    (tmp_path / "labels").mkdir()
    records = [LabelRecord.of(f"im{n}", (0,), np.zeros((4, 5), np.uint8)) for n in range(3)]
    write_label_shard(
        tmp_path / "labels", 0, 2, records, failed={"im9": "truncated"},
        identity={"class_names": ["cat", "dog"], "weights": HASH, "scales": [1.0, 0.5]},
        config={"cams": {"dataset": "voc", "split": "train_aug"}, "checkpoint": "run/last"},
        versions={"torch": "2.6", "wsssfast": "0.1.0"},
    )  # fmt: skip
    return tmp_path / "labels"


def test_inspect_says_what_made_the_shards(wsssfast, folder):
    code, out, err = wsssfast("inspect", folder)
    assert (code, err) == (0, "")
    rows = [[cell.strip() for cell in line.split("│")[1:3]] for line in out.splitlines()]
    told = dict(row for row in rows if len(row) == 2)
    size = sum(path.stat().st_size for path in folder.glob("labels-*"))
    assert told == {
        "kind": "labels", "images": "3", "bytes": str(size),
        "bytes_per_image": str(round(size / 3)),
        "missing_shards": "labels-00001-of-00002", "failed": "im9: truncated",
        "data set": "voc", "split": "train_aug",
        "checkpoint": "run/last", "versions": "torch 2.6, wsssfast 0.1.0", "weights": HASH[:12],
        "class_names": "2 classes", "scales": "1.0, 0.5",
    }  # fmt: skip


def test_the_json_of_inspect_is_whole(wsssfast, folder):
    found = json.loads(wsssfast("inspect", folder, "--json", "-")[1])
    assert found["identity"]["weights"] == HASH
    assert found["config"]["cams"]["split"] == "train_aug"
    assert found["bytes_per_image"] == found["bytes"] / 3
    assert found["versions"] == {"torch": "2.6", "wsssfast": "0.1.0"}


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_folders_without_shards_get_one_line(wsssfast, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "masks").mkdir()
    random_image(4, 4).save("masks/im0.png")
    code, out, err = wsssfast(command, "masks")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "Expected CAM, label or score shards in masks, found none." in err
    assert "PNG masks are for `wsssfast evaluate seg`." in err
    code, out, err = wsssfast(command, "nowhere")
    assert (code, out) == (2, "")
    assert err == "Error: Expected a folder of shards at nowhere, found none. Check the path.\n"
