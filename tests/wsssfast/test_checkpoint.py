"""Checkpoints: round trip, public layouts, and files that are something else."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from support import BACKBONE, CLASSIFIER, needs_shared, tiny_model
from tampering import flips

from wsssfast.errors import WsssError
from wsssfast.models.checkpoint import (
    load_affinity,
    load_model,
    load_segmenter,
    read_state_dict,
    save_model,
    weights_hash,
)


def test_round_trip_keeps_weights_and_configuration(tmp_path):
    model = tiny_model(mean=(0.5, 0.5, 0.5))
    save_model(model, tmp_path / "new" / "model.safetensors")
    again = load_model(tmp_path / "new" / "model.safetensors")
    assert again.config == model.config
    assert weights_hash(again) == weights_hash(model)
    assert not again.training
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["model.safetensors"]


def test_any_flipped_byte_is_found(tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(tiny_model(), path)
    for place in flips(path):
        with pytest.raises(WsssError):
            print(place, load_model(path))
    assert load_model(path)


def test_hash_is_of_the_weights_alone(tmp_path):
    a, b = tiny_model(0), tiny_model(1)
    assert weights_hash(a) == weights_hash(tiny_model(0))
    assert weights_hash(a) != weights_hash(b)
    assert weights_hash(a) != weights_hash(tiny_model(mean=(0.5, 0.5, 0.5)))


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("container", ["torch", "pickle"])
def test_a_checkpoint_that_tries_to_run_code_is_refused(tmp_path, container):
    path, marker = tmp_path / "evil.pth", tmp_path / "was_here"
    if container == "torch":
        torch.save({"model": {"cls_token": Bomb(marker)}}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(WsssError, match="holds something else or is damaged"):
        load_model(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("deit_tiny_patch16_224", {"checkpoint_path": "side.pth"}),
        ("deit_tiny_patch16_224", {"pretrained_cfg": {"file": "side.pth"}}),
        ("deit_tiny_patch16_224", {"patch_size": 0}),
        ("deit_tiny_patch16_224", {"num_heads": True}),
        ("deit_tiny_patch16_224", {"embed_dim": 10**9}),
        ("deit_tiny_patch16_224", {"num_heads": 5}),
        ("hf-hub:somebody/something", {}),
        ("local-dir:/tmp", {}),
    ],
)
def test_a_description_cannot_make_timm_read_files_or_addresses(tmp_path, arch, options):
    marker = tmp_path / "was_here"
    (tmp_path / "side.pth").write_bytes(pickle.dumps(Bomb(marker)))
    options = {k: str(tmp_path / v) if v == "side.pth" else v for k, v in options.items()}
    config = tiny_model().config.to_json() | {"arch": arch, "arch_options": options}
    meta = {"version": 1, "kind": "classifier", "config": config}
    save_file({"x": torch.zeros(1)}, tmp_path / "m.safetensors", {"wsssfast": json.dumps(meta)})
    with pytest.raises(WsssError):
        load_model(tmp_path / "m.safetensors")
    assert not marker.exists()


@pytest.mark.parametrize(
    "change", [{"std": [0, 1, 1]}, {"image_size": float("inf")}, {"mean": "abc"}, {"arch": None}]
)
def test_a_damaged_description_is_refused(tmp_path, change):
    config = tiny_model().config.to_json() | change
    meta = {"version": 1, "kind": "classifier", "config": config}
    save_file({"x": torch.zeros(1)}, tmp_path / "m.safetensors", {"wsssfast": json.dumps(meta)})
    with pytest.raises(WsssError):
        load_model(tmp_path / "m.safetensors")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.head.bias[0] = float("nan")
    save_model(model, tmp_path / "m.safetensors")
    with pytest.raises(WsssError, match="finite weights"):
        load_model(tmp_path / "m.safetensors")


def test_absent_and_damaged_files(tmp_path):
    with pytest.raises(WsssError, match=r"no.pth, found none. Check the path."):
        load_model(tmp_path / "no.pth")
    save_model(tiny_model(), tmp_path / "m.safetensors")
    whole = (tmp_path / "m.safetensors").read_bytes()
    for size in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.safetensors").write_bytes(whole[:size])
        with pytest.raises(WsssError):
            load_model(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("load", [load_model, load_segmenter, load_affinity, read_state_dict])
def test_a_folder_is_told_with_the_file_in_it(tmp_path, load):
    with pytest.raises(WsssError, match=r"found a folder. Give a file in it."):
        load(tmp_path)
    save_model(tiny_model(), tmp_path / "last.safetensors")
    with pytest.raises(WsssError) as caught:
        load(tmp_path)
    assert caught.value.message.endswith(f" at {tmp_path}, found a folder.")
    assert caught.value.remedy == f"Give {tmp_path / 'last.safetensors'}."


def written(path):
    torch.save({"weight": torch.zeros(2)}, path)
    return path


def test_other_kinds_are_named(tmp_path):
    state = {"weight": torch.zeros(2)}
    save_file(state, tmp_path / "plain.safetensors")
    with pytest.raises(WsssError, match=r"weights without description. Weights alone are for"):
        load_model(tmp_path / "plain.safetensors")
    with pytest.raises(WsssError, match=r"found a file that is no safetensors. .*fast train-seg`"):
        load_segmenter(written(tmp_path / "foreign.pth"))
    meta = {"wsssfast": json.dumps({"kind": "segmenter", "version": 1})}
    save_file(state, tmp_path / "seg.safetensors", meta)
    with pytest.raises(WsssError, match=r"kind 'segmenter'. Make one with `wsssfast train`"):
        load_model(tmp_path / "seg.safetensors")
    with pytest.raises(WsssError, match=r"kind 'segmenter'. .* `wsssfast train-affinity`"):
        load_affinity(tmp_path / "seg.safetensors")
    meta = {"wsssfast": json.dumps({"kind": "classifier", "version": 99})}
    save_file(state, tmp_path / "later.safetensors", meta)
    with pytest.raises(WsssError, match=r"format 1 in .*, found 99"):
        load_model(tmp_path / "later.safetensors")
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(WsssError, match="public layout"):
        load_model(tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WsssError, match="found list"):
        load_model(tmp_path / "list.pth")


@needs_shared
def test_the_shared_checkpoints():
    model = load_model(CLASSIFIER)
    assert (model.num_classes, model.grid, len(model.blocks)) == (20, 14, 12)
    assert model.blocks[0].attn.num_heads == 3
    assert model.config.class_names[14] == "person"
    with pytest.raises(WsssError, match="ImageNet backbone weights"):
        load_model(BACKBONE)
