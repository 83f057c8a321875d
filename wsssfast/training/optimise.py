"""Parameter groups, the optimiser and its learning rate."""

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from wsssfast.training.options import Schedule

_POWER = 0.9  # of the poly curve (DeepLab, [A])


def parameter_groups(
    model: nn.Module,
    options: Schedule,
    *,
    bare: Collection[str],
    new: Collection[str],
    bias_rate: float = 1.0,
) -> list[dict[str, Any]]:
    """Groups of what is trained, with their weight decay and their `factor` on the rate.

    Args:
        model: whose parameters.
        options: weight decay and the factor of what is new.
        bare: names without weight decay, besides all vectors.
        new: names, or beginnings that end in a dot, of what starts untrained.
        bias_rate: factor on the rate of biases.
    """
    groups: dict[tuple[bool, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 and name not in bare
        fresh = name in new or any(n.endswith(".") and name.startswith(n) for n in new)
        bias = bias_rate != 1 and name.endswith(".bias")
        groups.setdefault((decays, fresh, bias), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": options.weight_decay if decays else 0.0,
            "factor": (options.new_rate if fresh else 1.0) * (bias_rate if bias else 1.0),
        }
        for (decays, fresh, bias), parameters in groups.items()
    ]


def build_optimiser(groups: list[dict[str, Any]], options: Schedule) -> torch.optim.Optimizer:
    """The optimiser; its rate is set by `set_rate` before each step."""
    if options.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=options.peak_rate, momentum=options.momentum, fused=True)
    kind = torch.optim.AdamW if options.optimiser == "adamw" else torch.optim.Adam
    return kind(groups, lr=options.peak_rate, fused=True)


def rate_at(step: int, per_epoch: int, options: Schedule) -> float:
    """Learning rate of a step: linear warm-up, then timm's cosine over all epochs ([M]) or poly."""
    epoch = step / per_epoch
    if epoch < options.warmup_epochs:
        share = epoch / options.warmup_epochs
        return options.warmup_rate + (options.peak_rate - options.warmup_rate) * share
    if options.curve == "poly":
        return float(options.peak_rate * (1 - epoch / options.epochs) ** _POWER)
    cosine = 0.5 + 0.5 * math.cos(math.pi * epoch / options.epochs)
    return options.final_rate + (options.peak_rate - options.final_rate) * cosine


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set every group's rate to `rate` times its factor."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["factor"]
