"""Published weights of ResNet38 and AffinityNet, on generated files."""

import struct

import numpy as np
import pytest
import torch

from wsssfast.errors import WsssError
from wsssfast.models.affinity import AffinityConfig, AffinityNet, ConvTrunk
from wsssfast.models.affinity_weights import load_conv, load_resnet38, published_state
from wsssfast.models.checkpoint import load_affinity
from wsssfast.models.mxnet_params import read_mxnet
from wsssfast.models.resnet38 import ResNet38

FORMS = ("first", "second", "third", "last")  # of MXNet's arrays over the years


def mxnet_array(array, form):
    dims = array.shape
    if form == "first":
        begin = struct.pack(f"<I{len(dims)}I", len(dims), *dims)
    else:
        magic = {"second": 0xF993FAC8, "third": 0xF993FAC9, "last": 0xF993FACA}[form]
        stored = b"" if form == "second" else struct.pack("<i", 0)
        begin = struct.pack("<I", magic) + stored + struct.pack(f"<I{len(dims)}q", len(dims), *dims)
    kind = {"float32": 0, "float16": 2, "int32": 4}[str(array.dtype)]
    return begin + struct.pack("<iii", 1, 0, kind) + array.tobytes()


def mxnet_file(arrays, form="first"):
    content = struct.pack("<QQQ", 0x112, 0, len(arrays))
    content += b"".join(mxnet_array(array, form) for array in arrays.values())
    content += struct.pack("<Q", len(arrays))
    return content + b"".join(struct.pack("<Q", len(n)) + n.encode() for n in arrays)


def mxnet_name(name):
    """`b3_1.bn_branch2a.weight` -> `arg:bn3b1_branch2a_gamma`, as Wu et al. name it."""
    first, *rest = name.split(".")
    last = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean",
            "running_var": "moving_var"}[rest[-1]]  # fmt: skip
    group = "aux" if "moving" in last else "arg"
    if first in ("conv1a", "bn7"):
        return f"{group}:{first}_{'weight' if first == 'conv1a' else last}"
    stage, _, block = first[1:].partition("_")
    kind, _, branch = rest[0].partition("_")
    what = "weight" if kind == "conv" else last
    word = "res" if kind == "conv" else "bn"
    return f"{group}:{word}{stage}{f'b{block}' if block else 'a'}_{branch}_{what}"


def psa_state():
    """ResNet38's tensors, each of one value; they take no room in a file."""
    with torch.device("meta"):
        net = ResNet38()
    kept = {k: v for k, v in net.state_dict().items() if "num_batches" not in k}
    return {k: torch.tensor(0.5 + n).expand(v.shape) for n, (k, v) in enumerate(kept.items())}


def has(network, state, prefix=""):
    own = network.state_dict()
    return all((own[f"{prefix}{name}"] == value).all() for name, value in state.items())


@pytest.mark.parametrize("form", FORMS)
def test_mxnet_arrays_come_back(tmp_path, form):
    rng = np.random.RandomState(0)
    arrays = {
        "arg:a_weight": rng.randn(3, 2, 1, 5).astype(np.float32),
        "aux:b_moving_mean": rng.randn(4).astype(np.float16),
        "c": np.arange(6, dtype=np.int32).reshape(2, 3),
    }
    path = tmp_path / "x.params"
    path.write_bytes(mxnet_file(arrays, form))
    found = read_mxnet(path)
    assert list(found) == ["a_weight", "b_moving_mean", "c"]
    for tensor, array in zip(found.values(), arrays.values(), strict=True):
        assert np.array_equal(tensor.numpy(), array)


def test_damaged_mxnet_files_are_refused(tmp_path):
    whole = mxnet_file({"a": np.ones((2, 3), np.float32), "b": np.ones(2, np.float32)})
    path = tmp_path / "x.params"
    rng = np.random.RandomState(0)
    for n in range(400):
        content = bytearray(whole)
        if n < len(whole):
            content = content[:n]
        else:
            content[rng.randint(len(content))] = rng.randint(256)
        path.write_bytes(content)
        try:
            found = read_mxnet(path)
        except WsssError as error:
            assert "damaged" in error.message
        else:
            assert len(found) == 2  # a flipped value


def test_names_of_the_imagenet_file_are_those_of_resnet38(tmp_path):
    with torch.device("meta"):
        names = [k for k in ResNet38().state_dict() if "num_batches" not in k]
    given = {mxnet_name(name): np.full(1, n, np.float32) for n, name in enumerate(names)}
    given["arg:linear1000_weight"] = np.zeros(1, np.float32)
    (tmp_path / "x.params").write_bytes(mxnet_file(given))
    found = published_state(tmp_path / "x.params")
    assert {name: int(value) for name, value in found.items()} == {
        k: n for n, k in enumerate(names)
    }
    (tmp_path / "y.params").write_bytes(mxnet_file({"arg:stage1_unit1_conv": np.zeros(1, "f4")}))
    with pytest.raises(WsssError, match="found the name 'stage1_unit1_conv'"):
        published_state(tmp_path / "y.params")


def test_psa_state_dicts_fill_trunk_and_network(tmp_path):
    state = psa_state()
    path = tmp_path / "res38_cls.pth"
    torch.save({**state, "fc8.weight": torch.zeros(20, 4096, 1, 1)}, path)
    trunk = ResNet38()
    load_resnet38(trunk, path)
    assert has(trunk, state)
    with pytest.raises(WsssError, match="without its layers"):
        load_affinity(path)

    shapes = {"f8_3": (64, 512), "f8_4": (128, 1024), "f8_5": (256, 4096), "f9": (448, 448)}
    own = {f"{k}.weight": torch.tensor(0.1).expand(*s, 1, 1) for k, s in shapes.items()}
    torch.save({f"module.{k}": v for k, v in {**state, **own}.items()}, tmp_path / "aff.pth")
    net = load_affinity(tmp_path / "aff.pth")
    assert has(net, state, "trunk.") and has(net, own)
    assert net.config == AffinityConfig(()) and not net.training
    load_resnet38(trunk, tmp_path / "aff.pth")

    for broken, told in (
        ({k: v for k, v in state.items() if k != "b4.conv_branch2a.weight"}, "1 of its tensors"),
        (state | {"b9.weight": torch.zeros(1)}, "1 others, such as b9.weight"),
        (state | {"conv1a.weight": torch.zeros(64, 3, 7, 7)}, "size mismatch"),
        (state | {"bn7.bias": torch.tensor(float("nan")).expand(4096)}, "finite"),
    ):
        torch.save(broken, path)
        with pytest.raises(WsssError, match=told):
            load_resnet38(trunk, path)
    with pytest.raises(WsssError, match="found none"):
        load_resnet38(trunk, tmp_path / "none.pth")


def test_a_file_of_the_whole_network_fills_a_trunk_of_timm(tmp_path):
    import timm

    whole = timm.create_model("resnet18", pretrained=False)
    torch.save(whole.state_dict(), tmp_path / "r18.pth")
    trunk = ConvTrunk("resnet18")
    load_conv(trunk.net, "resnet18", str(tmp_path / "r18.pth"))
    assert torch.equal(trunk.net.layer4[1].conv2.weight, whole.layer4[1].conv2.weight)
    with pytest.raises(WsssError, match="Expected weights of resnet34"):
        load_conv(ConvTrunk("resnet34").net, "resnet34", str(tmp_path / "r18.pth"))
    net = AffinityNet(AffinityConfig(("cat",), "resnet18"))
    assert net(torch.zeros(1, 3, 80, 80)).shape == (1, 34, 10, 10)
