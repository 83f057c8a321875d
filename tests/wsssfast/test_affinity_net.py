"""ResNet38 in its published layout, and AffinityNet on each kind of trunk."""

import pytest
import torch
from support import tiny_config

from wsssfast.errors import WsssError
from wsssfast.models.affinity import AffinityConfig, AffinityNet
from wsssfast.models.resnet38 import ResNet38

# channels in, between and out of the blocks of network/resnet38d.py in jiwoon-ahn/psa
BLOCKS = {
    "b2": (64, 128, 128), "b2_1": (128, 128, 128), "b2_2": (128, 128, 128),
    "b3": (128, 256, 256), "b3_1": (256, 256, 256), "b3_2": (256, 256, 256),
    "b4": (256, 512, 512), **{f"b4_{n}": (512, 512, 512) for n in range(1, 6)},
    "b5": (512, 512, 1024), "b5_1": (1024, 512, 1024), "b5_2": (1024, 512, 1024),
}  # fmt: skip
BOTTLENECKS = {"b6": (1024, 512, 1024, 2048), "b7": (2048, 1024, 2048, 4096)}
NAMES = ("cat", "dog", "cow")


def published_shapes():
    """Tensor name -> shape, the statistics of batch normalisations left out."""
    shapes = {"conv1a.weight": (64, 3, 3, 3)}

    def normalised(name, channels):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (channels,)

    for name, (first, middle, last) in BLOCKS.items():
        normalised(f"{name}.bn_branch2a", first)
        normalised(f"{name}.bn_branch2b1", middle)
        shapes[f"{name}.conv_branch2a.weight"] = (middle, first, 3, 3)
        shapes[f"{name}.conv_branch2b1.weight"] = (last, middle, 3, 3)
        if "_" not in name:  # in the first of each stage
            shapes[f"{name}.conv_branch1.weight"] = (last, first, 1, 1)
    for name, (first, second, third, last) in BOTTLENECKS.items():
        normalised(f"{name}.bn_branch2a", first)
        normalised(f"{name}.bn_branch2b1", second)
        normalised(f"{name}.bn_branch2b2", third)
        shapes[f"{name}.conv_branch2a.weight"] = (second, first, 1, 1)
        shapes[f"{name}.conv_branch2b1.weight"] = (third, second, 3, 3)
        shapes[f"{name}.conv_branch2b2.weight"] = (last, third, 1, 1)
        shapes[f"{name}.conv_branch1.weight"] = (last, first, 1, 1)
    normalised("bn7", 4096)
    return shapes


def test_resnet38_has_the_published_layout():
    with torch.device("meta"):
        net = ResNet38()
    found = {name: tuple(p.shape) for name, p in net.named_parameters()}
    assert found == published_shapes()
    assert sum(p.numel() for p in net.parameters()) == 105_070_912
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    assert frozen == {name for name in found if "bn" in name} | {"conv1a.weight"}


@pytest.mark.parametrize("size", [(321, 313), (8, 8), (9, 17)])
def test_resnet38_has_an_output_stride_of_8(size):
    with torch.device("meta"):
        taps = ResNet38()(torch.empty(2, 3, *size))
    grid = tuple(-(-side // 8) for side in size)
    assert [tuple(tap.shape) for tap in taps] == [(2, c, *grid) for c in (512, 1024, 4096)]


def test_resnet38_keeps_its_statistics_in_training():
    with torch.device("meta"):
        net = ResNet38().train()
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and not any(m.training for m in norms)
    assert net.b6.dropout_2b1.training


@pytest.mark.parametrize("boundary", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        AffinityConfig(NAMES, "vit", tiny_config(NAMES)),
        AffinityConfig(NAMES, "vit", tiny_config(NAMES), mean=(0.5, 0.5, 0.5)),
        AffinityConfig(NAMES, "resnet18"),
    ],
)
def test_affinities_have_a_cell_for_8_pixels_and_a_gradient(config, boundary):
    torch.manual_seed(0)
    config = AffinityConfig(**{**vars(config), "boundary": boundary})
    assert AffinityConfig.from_json(config.to_json()) == config
    net = AffinityNet(config)
    found = net(torch.randn(2, 3, 48, 80))
    assert found.shape == (2, 34, 6, 10)
    inside = found[:, :, :2, 4:6]
    assert inside.min() > 0 and found.max() <= 1
    found.sum().backward()
    grads = {name: p.grad for name, p in net.named_parameters() if p.requires_grad}
    used = [name for name in grads if name.startswith(("f8", "f9", "trunk.norms"))]
    assert all(grads[name].abs().sum() > 0 for name in used)


def test_a_trunk_that_is_none_is_refused():
    with pytest.raises(WsssError, match="stride 8"):
        AffinityNet(AffinityConfig(NAMES, "no_such_net"))
    with pytest.raises(WsssError, match="classifier"):
        AffinityNet(AffinityConfig(NAMES, "vit"))
