"""Published weights of AffinityNet and its ResNet38 trunk, in the layouts that users have.

- `res38_cls.pth` and other state dicts of PSA, SEAM and MCTformer: ResNet38's names, with a
  classifier (`fc8`) that is left out;
- PSA's trained AffinityNet: the same with `f8_3`, `f8_4`, `f8_5` and `f9`;
- `ilsvrc-cls_rna-a1_cls1000_ep-0001.params` of Wu et al. (2019), MXNet's format: ImageNet.

Names of the last follow from PSA's `convert_mxnet_to_torch` (network/resnet38d.py).
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from wsssfast.errors import WsssError
from wsssfast.models.affinity import AffinityConfig, AffinityNet
from wsssfast.models.backbone import backbone_weights
from wsssfast.models.mxnet_params import is_mxnet, read_mxnet
from wsssfast.models.resnet38 import ResNet38
from wsssfast.models.sealed import require_file, require_finite

PROJECTIONS = ("f8_3", "f8_4", "f8_5", "f9")
_LEFT_OUT = re.compile(r"fc\d*\.|linear1000|.*num_batches_tracked$")
_OF_NORMS = {"beta": "bias", "gamma": "weight", "moving_mean": "running_mean",
             "moving_var": "running_var"}  # fmt: skip
_MXNET = re.compile(
    r"(?P<kind>res|bn)(?P<stage>\d)(?P<block>[ab]\d?)?_?(?P<branch>branch\w+?)?_"
    r"(?P<what>weight|beta|gamma|moving_mean|moving_var)"
)


def published_state(path: Path) -> dict[str, Tensor]:
    """A published state dict under PSA's names.

    Raises:
        WsssError: unreadable, or of another network.
    """
    from wsssfast.models.checkpoint import read_state_dict

    require_file(path, "weights of ResNet38")
    if is_mxnet(path):
        return {_renamed(k, path): v for k, v in read_mxnet(path).items() if not _LEFT_OUT.match(k)}
    return {k: v for k, v in read_state_dict(path).items() if not _LEFT_OUT.match(k)}


def load_resnet38(trunk: ResNet38, path: Path) -> None:
    """Put published weights into a trunk; those of an AffinityNet's projections are left out.

    Raises:
        WsssError: unreadable, or of another network.
    """
    state = published_state(path)
    _fill(trunk, {k: v for k, v in state.items() if k.split(".")[0] not in PROJECTIONS}, path)


def load_conv(net: nn.Module, arch: str, source: str) -> None:
    """Put weights of a whole network of timm into its features.

    Args:
        net: whose parts timm may have renamed, from `stages.0.` to `stages_0.`.
        arch: timm's name.
        source: a file, or `timm` to download.

    Raises:
        WsssError: unreadable, or of another network.
    """
    state = backbone_weights(arch, source)
    found = {}
    for name, tensor in net.state_dict().items():
        given = state.get(name, state.get(re.sub(r"_(\d+)\.", r".\1.", name, count=1)))
        if name.endswith("num_batches_tracked"):
            continue
        if given is None or given.shape != tensor.shape:
            told = "none" if given is None else f"one of {list(given.shape)}"
            raise WsssError(
                f"Expected weights of {arch} in {source}: {name} of {list(tensor.shape)}, found "
                f"{told}."
            )
        found[name] = given
    net.load_state_dict(found, strict=False)


def load_published(path: Path) -> AffinityNet:
    """PSA's trained AffinityNet; its classes are unknown.

    Raises:
        WsssError: unreadable, or no AffinityNet on ResNet38.
    """
    state = published_state(path)
    own = {k: v for k, v in state.items() if k.split(".")[0] in PROJECTIONS}
    if not own:
        raise WsssError(
            f"Expected a trained AffinityNet at {path}, found weights without its layers "
            f"{', '.join(PROJECTIONS)}.",
            "Train one with `wsssfast train-affinity`; a trunk's weights are for --pretrained.",
        )
    net = AffinityNet(AffinityConfig(()))
    _fill(net, own | {f"trunk.{k}": v for k, v in state.items() if k not in own}, path)
    return net.eval()


def _fill(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load; only the counters of batch normalisations, which nothing reads, may be missing."""
    try:
        found: Any = network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        first = str(error).splitlines()[1 if "\n" in str(error) else 0].strip()
        raise WsssError(f"Expected weights of ResNet38 in {path}: {first}") from error
    missing = [k for k in found.missing_keys if not k.endswith("num_batches_tracked")]
    wrong = [*missing, *found.unexpected_keys]
    if wrong:
        raise WsssError(
            f"Expected weights of ResNet38 as PSA publishes it in {path}, found "
            f"{len(missing)} of its tensors missing and {len(found.unexpected_keys)} others, such "
            f"as {wrong[0]}."
        )
    require_finite(state, path)


def _renamed(name: str, path: Path) -> str:
    """`bn3b1_branch2a_gamma` -> `b3_1.bn_branch2a.weight`.

    Raises:
        WsssError: a name of another network.
    """
    if name == "conv1a_weight":
        return "conv1a.weight"
    found = _MXNET.fullmatch(name)
    if not found:
        raise WsssError(f"Expected weights of ResNet38 in {path}, found the name {name[:60]!r}.")
    last = _OF_NORMS.get(found["what"], "weight")
    if not found["branch"]:
        return f"bn{found['stage']}.{last}"
    block = "" if found["block"] == "a" else f"_{found['block'][1:]}"
    kind = "conv" if found["kind"] == "res" else "bn"
    return f"b{found['stage']}{block}.{kind}_{found['branch']}.{last}"
