"""One safetensors file: tensors, and a JSON document that also holds the checksum of both.

safetensors itself has no checksum: a flipped bit would be one wrong weight.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from wsssfast.errors import WsssError
from wsssfast.files import publish
from wsssfast.parse import json_of

_KEY = "wsssfast"
_SEAL = "sha256"


def require_file(path: Path, what: str, remedy: str = "") -> None:
    """Refuse a path at which there is no file; a folder of a training run has one to name.

    Args:
        path: of a file of weights.
        what: it should be, for the error.
        remedy: where there is nothing.

    Raises:
        WsssError: no file there.
    """
    if path.is_dir():
        last = path / "last.safetensors"
        given = str(last) if last.is_file() else "a file in it"
        raise WsssError(f"Expected {what} at {path}, found a folder.", f"Give {given}.")
    if not path.is_file():
        raise WsssError(f"Expected {what} at {path}, found none.", remedy)


def write_sealed(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write both into one file; an earlier one stays until this one is complete.

    Args:
        path: of the file.
        tensors: by name, on any device.
        about: plain JSON types.
    """
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    plain = json.loads(json.dumps(about))  # as it will be read
    content = save(ready, {_KEY: json.dumps({**plain, _SEAL: _digest(ready, plain)})})
    publish(path, lambda partial: partial.write_bytes(content))


def read_sealed(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The document, empty where there is none, and the tensors of a file.

    Raises:
        ValueError: damaged, or no such file.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json_of((file.metadata() or {}).get(_KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error
    if not isinstance(about, dict):
        raise ValueError(f"its description is {str(about)[:40]}")
    seal = about.pop(_SEAL, None)
    if seal is not None and seal != _digest(tensors, about):
        raise ValueError("its checksum is that of another content")
    return about, tensors


def require_finite(tensors: dict[str, Tensor], place: str | Path) -> None:
    """Refuse weights that went wrong when they were trained.

    Raises:
        WsssError: NaN or infinity among them.
    """
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise WsssError(
            f"Expected finite weights in {place}, found NaN or infinity.",
            "The training that made it went wrong; take an earlier checkpoint.",
        )


def _digest(tensors: dict[str, Tensor], about: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
