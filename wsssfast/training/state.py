"""What a training run needs to go on exactly where it stopped: one safetensors file.

Weights, optimiser state and step travel together, so that no two files can disagree. Randomness
needs no state: it is a function of seed, epoch and index.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsssfast.errors import WsssError
from wsssfast.models.sealed import read_sealed, write_sealed
from wsssfast.shards.format import require_same_identity

FORMAT_VERSION = 1
NAME = "resume.safetensors"


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: steps done.
        best: the best score so far and the epoch (from 1) that it belongs to; None before one.
        failed: id -> reason of images that could not be read.
        scaler: state of the fp16 loss scaler.
        seconds: time spent training so far.
    """

    step: int = 0
    best: tuple[float, int] | None = None
    failed: dict[str, str] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def save_state(
    out: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    progress: Progress,
    identity: dict[str, Any],
) -> None:
    """Write the state of a run; the former one stays until this one is complete."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, values in optimiser.state_dict()["state"].items():
        for key, value in values.items():
            tensors[f"optimiser.{index}.{key}"] = value
    meta = {"version": FORMAT_VERSION, "kind": "training", "identity": identity, **vars(progress)}
    write_sealed(out / NAME, tensors, meta)


def load_state(
    out: Path, model: nn.Module, optimiser: torch.optim.Optimizer, identity: dict[str, Any]
) -> Progress:
    """Put model and optimiser where the run in `out` stopped; nothing there: step 0.

    Raises:
        WsssError: a damaged file, or a run of another configuration.
    """
    path = out / NAME
    if not path.is_file():
        return Progress()
    try:
        meta, tensors = read_sealed(path)
        if meta["kind"] != "training" or meta["version"] != FORMAT_VERSION:
            raise ValueError(f"kind {meta['kind']}, version {meta['version']}")
        require_same_identity(meta["identity"], identity, out)
        _restore(model, optimiser, tensors)
        best = meta["best"]
        return Progress(
            step=int(meta["step"]),
            best=(float(best[0]), int(best[1])) if best else None,
            failed=dict(meta["failed"]),
            scaler=dict(meta["scaler"]),
            seconds=float(meta["seconds"]),
        )
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise WsssError(
            f"Expected the state of a training run at {path}, found a damaged file: {error}.",
            "Start anew with --overwrite, or in another folder.",
        ) from error


def _restore(
    model: nn.Module, optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    weights, state = {}, optimiser.state_dict()
    state["state"] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "model":
            weights[rest] = tensor
        else:
            index, _, key = rest.partition(".")
            state["state"].setdefault(int(index), {})[key] = tensor
    model.load_state_dict(weights)
    optimiser.load_state_dict(state)
