"""Read and write checkpoints; nothing in a file is ever executed.

Ours is one `.safetensors` file: weights, and in its header's metadata under `wsssfast` a JSON
document (format version, kind, configuration). One file cannot be half replaced.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from wsssfast.data.voc import CLASS_NAMES as VOC_CLASSES
from wsssfast.errors import WsssError
from wsssfast.models.affinity import AffinityConfig, AffinityNet
from wsssfast.models.affinity_weights import load_published
from wsssfast.models.classifier import ClassTokenViT
from wsssfast.models.classifier_config import ClassifierConfig
from wsssfast.models.sealed import read_sealed, require_file, require_finite, write_sealed
from wsssfast.models.segmenter import Segmenter, SegmenterConfig

_Loaded = TypeVar("_Loaded", Segmenter, AffinityNet)
FORMAT_VERSION = 1
_MAKERS = {
    ClassTokenViT.kind: "train", Segmenter.kind: "train-seg", AffinityNet.kind: "train-affinity",
}  # fmt: skip
_HEAD_WIDTH = 64  # of every DeiT, hence of every MCTformer


def save_model(
    model: ClassTokenViT | Segmenter | AffinityNet,
    path: Path,
    training: dict[str, Any] | None = None,
) -> None:
    """Write a network to `path` (.safetensors); an earlier file stays until it is complete.

    Args:
        model: weights and configuration.
        path: of the file; its folder is made.
        training: how it was trained, as plain JSON types, for the record.
    """
    meta = {"version": FORMAT_VERSION, "kind": model.kind, "config": model.config.to_json()}
    if training:
        meta["training"] = training
    path.parent.mkdir(parents=True, exist_ok=True)
    write_sealed(path, model.state_dict(), meta)


def load_model(path: str | Path) -> ClassTokenViT:
    """Open a classifier: our own checkpoint, or a public one of MCTformer-V1, -V2 or +.

    The structure of an MCTformer is read off the tensors (heads = width / 64); the classes
    are named after VOC or COCO where their number says so.

    Returns:
        The model in evaluation mode, float32, on CPU; `config.class_names` are its classes.

    Raises:
        WsssError: no such file, not a checkpoint, or one of another kind.
    """
    path = _existing(Path(path))
    if _is_safetensors(path):
        config, state = _read_own(path, ClassTokenViT.kind, ClassifierConfig.from_json)
    else:
        found = read_state_dict(path)
        state, plus = _as_ours(found), _SPLIT[0] in found
        config = replace(
            _mctformer_config(state, path),
            split_positions=plus,
            patch_decay=_PLUS_DECAY if plus else 1.0,
        )
        if not config.patch_head:
            state = {k: v for k, v in state.items() if not k.startswith("head.")}
    return _with_weights(ClassTokenViT(config), state, path)


def load_segmenter(path: str | Path) -> Segmenter:
    """Open a segmenter of ours.

    Returns:
        The model in evaluation mode, float32, on CPU.

    Raises:
        WsssError: no such file, not a checkpoint, or one of another kind.
    """
    path = _own(path, Segmenter.kind)
    config, state = _read_own(path, Segmenter.kind, SegmenterConfig.from_json)
    return _with_weights(Segmenter(config), state, path)


def load_affinity(path: str | Path) -> AffinityNet:
    """Open an AffinityNet of ours, or one on ResNet38 as PSA publishes it.

    Returns:
        The model in evaluation mode, float32, on CPU; without class names if it is not ours.

    Raises:
        WsssError: no such file, not a checkpoint, or one of another kind.
    """
    path = _existing(Path(path))
    if not _is_safetensors(path):
        return load_published(path)
    config, state = _read_own(path, AffinityNet.kind, AffinityConfig.from_json)
    return _with_weights(AffinityNet(config), state, path)


@lru_cache(maxsize=1)
def load_again(load: Callable[[Path], _Loaded], path: Path, weights: str, device: str) -> _Loaded:
    """A network that a run's processes open once each.

    Args:
        load: `load_affinity` or `load_segmenter`.
        path: of the checkpoint.
        weights: hash of its weights when the run began.
        device: where it goes.

    Raises:
        WsssError: it cannot be opened, or its weights have another hash by now.
    """
    net = load(path)
    if weights_hash(net) != weights:
        raise WsssError(
            f"Expected the weights in {path} to stay as they were when this run began.",
            "Run the same command again.",
        )
    return net.to(device)


def weights_hash(model: ClassTokenViT | Segmenter | AffinityNet) -> str:
    """SHA-256 over structure, normalisation and all weights, whatever file they came from."""
    config = model.config.to_json()
    structure = {k: v for k, v in config.items() if k not in ("class_names", "names_assumed")}
    digest = hashlib.sha256(json.dumps(structure, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a torch or safetensors file; `model`, `state_dict` and `module.` are unwrapped.

    Raises:
        WsssError: unreadable, or anything but tensors by name.
    """
    require_file(path, "weights")
    try:
        if _is_safetensors(path):
            return read_sealed(path)[1]
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way inside torch's unpickler
        raise WsssError(
            f"Expected a file of weights at {path}, found one that holds something else or is "
            f"damaged ({type(error).__name__}).",
            "Files are read without executing anything in them; get one that holds tensors only.",
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found:
        raise WsssError(f"Expected a state dict in {path}, found {type(found).__name__}.")
    if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()):
        raise WsssError(f"Expected only named tensors in {path}, found other things.")
    return {k.removeprefix("module."): v for k, v in found.items()}


def _is_safetensors(path: Path) -> bool:
    """Whether the file starts as a safetensors file does: a length, then JSON."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _existing(path: Path) -> Path:
    require_file(path, "a checkpoint", "Check the path.")
    return path


def _made(kind: str) -> str:
    """What to do for a checkpoint of a kind."""
    return f"Make one with `wsssfast {_MAKERS[kind]}`."


def _own(path: str | Path, kind: str) -> Path:
    """The path of a file in our own format."""
    found = _existing(Path(path))
    if not _is_safetensors(found):
        raise WsssError(
            f"Expected wsssfast's own {kind} checkpoint at {found}, found a file that is no "
            "safetensors.",
            _made(kind),
        )
    return found


_Network = TypeVar("_Network", ClassTokenViT, Segmenter, AffinityNet)
_Config = TypeVar("_Config", ClassifierConfig, AffinityConfig, SegmenterConfig)


def _with_weights(model: _Network, state: dict[str, Tensor], path: Path) -> _Network:
    """The model with weights from a file, in evaluation mode."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[1 if "\n" in str(error) else 0]
        raise WsssError(f"Expected the weights of a {model.kind} in {path}: {first}") from error
    require_finite(model.state_dict(), path)
    return model.eval()


def _read_own(
    path: Path, wanted: str, config: Callable[[dict[str, Any]], _Config]
) -> tuple[_Config, dict[str, Tensor]]:
    try:
        meta, state = read_sealed(path)
        kind, version = meta.get("kind"), meta.get("version")
        if kind != wanted:
            found = f"a checkpoint of kind {kind!r}" if kind else "weights without description"
            raise WsssError(
                f"Expected a {wanted} checkpoint at {path}, found {found}.",
                _made(wanted) if kind else f"Weights alone are for --pretrained. {_made(wanted)}",
            )
        if version != FORMAT_VERSION:
            raise WsssError(
                f"Expected checkpoint format {FORMAT_VERSION} in {path}, found {version}.",
                "Update wsssfast.",
            )
        return config(meta["config"]), state
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WsssError(
            f"Expected a checkpoint at {path}, found a damaged file: {error}.",
            "Get it again, or train it again.",
        ) from error


_SPLIT = ("pos_embed_cls", "pos_embed_pat")  # of MCTformer+, in this order
_PLUS_DECAY = 0.996  # of MCTformer+'s ranked pooling


def _as_ours(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A public state dict under MCTformer-V2's names."""
    parts = [state.get(name, torch.empty(0)) for name in _SPLIT]
    kept = {k: v for k, v in state.items() if not k.startswith("norm.") and k not in _SPLIT}
    if all(part.ndim == 3 for part in parts):
        kept["pos_embed"] = torch.cat(parts, 1)
    return kept


def _mctformer_config(state: dict[str, Tensor], path: Path) -> ClassifierConfig:
    """Structure of an MCTformer-V1 or -V2 from its tensor shapes."""
    from wsssfast.data.coco_names import CLASS_NAMES as COCO_CLASSES

    try:
        _, classes, width = state["cls_token"].shape
        patches = state["pos_embed"].shape[1] - classes
        patch = state["patch_embed.proj.weight"].shape[-1]
        hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
        depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))
        head = state.get("head.weight")
        side = math.isqrt(max(patches, 0))
        if classes == 1 and head is not None and head.ndim == 2 and head.shape[0] > 1:
            raise WsssError(
                f"Expected a trained classifier at {path}, found ImageNet backbone weights.",
                "They are for training (--pretrained); give a trained classifier here.",
            )
        if side * side != patches:
            raise KeyError("pos_embed")
        if width % _HEAD_WIDTH:
            raise ValueError(f"a width of {width}, which is no multiple of {_HEAD_WIDTH}")
    except (KeyError, ValueError, IndexError) as error:
        raise WsssError(
            f"Expected a classifier at {path}: one of wsssfast, or MCTformer-V1/V2's public "
            f"layout; it does not fit at {error}."
        ) from error
    known = {len(VOC_CLASSES): VOC_CLASSES, len(COCO_CLASSES): COCO_CLASSES}
    return ClassifierConfig(
        class_names=known.get(classes, tuple(f"class{c}" for c in range(classes))),
        arch="vit_tiny_patch16_224",
        arch_options={
            "patch_size": patch,
            "embed_dim": width,
            "depth": depth,
            "num_heads": width // _HEAD_WIDTH,
            "mlp_ratio": hidden / width,
            "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        },
        image_size=side * patch,
        patch_head=head is not None and head.ndim == 4,
        names_assumed=True,
    )
