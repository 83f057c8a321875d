"""Schedule, scores, logs and recipes."""

import json
import math
import tomllib
from importlib import resources

import numpy as np
import pytest
import torch
from support import tiny_model
from timm.scheduler import CosineLRScheduler

from wsssfast.training.classifier import average_precision
from wsssfast.training.logs import Logs, read_log
from wsssfast.training.optimise import build_optimiser, parameter_groups, rate_at
from wsssfast.training.options import ClassifierOptions, Schedule


def test_the_rate_is_that_of_timm_at_each_epoch():
    options = Schedule(epochs=20, batch_size=64)
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=options.peak_rate)
    theirs = CosineLRScheduler(
        optimiser, t_initial=20, lr_min=1e-5, warmup_t=5, warmup_lr_init=1e-6
    )
    assert options.peak_rate == pytest.approx(6.25e-5)
    for epoch in range(20):
        wanted = theirs._get_lr(epoch)[0]
        assert rate_at(epoch * 7, 7, options) == pytest.approx(wanted, rel=1e-9)


def test_what_decays_and_what_is_new():
    model = tiny_model()
    options = Schedule(new_rate=10.0, weight_decay=0.05)
    groups = parameter_groups(
        model, options, bare=("cls_token", "pos_embed"), new=("cls_token", "head.")
    )
    names = {id(p): n for n, p in model.named_parameters()}
    told = {
        names[id(p)]: (group["weight_decay"], group["factor"])
        for group in groups
        for p in group["params"]
    }
    assert len(told) == len(names)
    assert told["cls_token"] == (0.0, 10.0)
    assert told["pos_embed"] == (0.0, 1.0)
    assert told["head.weight"] == (0.05, 10.0)
    assert told["head.bias"] == (0.0, 10.0)
    assert told["blocks.0.mlp.fc1.weight"] == (0.05, 1.0)
    assert told["blocks.0.norm1.weight"] == (0.0, 1.0)


def test_the_poly_rate_falls_with_the_power_of_what_is_left():
    options = Schedule(
        epochs=4, batch_size=8, rate=0.01, rate_batch=8, curve="poly", warmup_epochs=1,
        warmup_rate=0,
    )  # fmt: skip
    assert rate_at(3, 6, options) == pytest.approx(0.005)
    for step in (6, 12, 23):
        assert rate_at(step, 6, options) == pytest.approx(0.01 * (1 - step / 24) ** 0.9)


def test_frozen_parameters_are_left_out_and_biases_may_go_faster():
    model = tiny_model()
    model.blocks[0].requires_grad_(False)
    options = Schedule(new_rate=10.0, optimiser="sgd", momentum=0.5)
    groups = parameter_groups(model, options, bare=(), new=("head.",), bias_rate=2.0)
    names = {id(p): n for n, p in model.named_parameters()}
    told = {names[id(p)]: group["factor"] for group in groups for p in group["params"]}
    assert told["head.bias"] == 20.0 and told["head.weight"] == 10.0
    assert told["blocks.1.mlp.fc1.bias"] == 2.0 and told["blocks.1.mlp.fc1.weight"] == 1.0
    assert not any(name.startswith("blocks.0.") for name in told)
    optimiser = build_optimiser(groups, options)
    assert isinstance(optimiser, torch.optim.SGD) and optimiser.defaults["momentum"] == 0.5


def test_average_precision_by_hand():
    target = np.array([[1, 0], [0, 0], [1, 0], [0, 0]], bool)
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.1, 0.4]], np.float32)
    found = average_precision(target, scores, ("cat", "dog"))
    assert found == {"cat": pytest.approx((1 + 2 / 3) / 2)}  # dog occurs in no image


def test_the_log_of_a_resumed_run_has_each_step_once(tmp_path):
    logs = Logs(tmp_path, 0)
    row = {"epoch": 1, "loss": 1.0, "rate": 0.1, "images_per_second": 5.0}
    logs.steps([{"step": n, **row} for n in (1, 2, 3)])
    logs.epoch({"step": 3, "epoch": 1, "scores": {"mAP": 0.5}})
    logs.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # cut short by a kill
    logs = Logs(tmp_path, 2)
    logs.steps([{"step": 3, **row}])
    logs.close()
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3]
    text = (tmp_path / "log.jsonl").read_text()
    assert all(math.isfinite(json.loads(line)["loss"]) for line in text.splitlines())
    assert any((tmp_path / "tensorboard").iterdir())


RECIPES = sorted(resources.files("wsssfast.recipes").joinpath("train").iterdir())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes_hold_options_and_say_where_they_are_from(path):
    text = path.read_text()
    values = {key.replace("-", "_"): value for key, value in tomllib.loads(text).items()}
    assert text.startswith("# ")
    for key in ("arch", "image_size", "patch_head", "one_token", "patch_decay", "split_positions",
                "final_norm", "adaptive_fusion"):  # fmt: skip
        values.pop(key, None)
    assert ClassifierOptions(**values).epochs > 0
