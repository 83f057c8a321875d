"""DeepLabV1 on ResNet38: its layout, and training from a file of the published layout.

The published weights are not at hand, so its quality is not tested; the files are generated.
"""

import numpy as np
import pytest
import torch

from wsssfast.data import open_dataset
from wsssfast.models.affinity_weights import load_resnet38
from wsssfast.models.checkpoint import load_segmenter
from wsssfast.models.resnet38 import ResNet38
from wsssfast.models.segmenter import Segmenter, SegmenterConfig, segmenter_loss
from wsssfast.preprocess import normalise
from wsssfast.training.logs import read_log


def test_deeplabv1_has_the_published_layout():
    """MCTformer's seg/network/resnet38_seg.py: stride 8, two convolutions of dilation 12."""
    with torch.device("meta"):
        model = Segmenter(SegmenterConfig(tuple("abcdefghijklmnopqrst"), "resnet38"))
        grid = model.net(torch.empty(1, 3, 321, 321))
    assert grid.shape == (1, 21, 41, 41)
    head = {
        name: tuple(tensor.shape)
        for name, tensor in model.net.state_dict().items()
        if name.startswith("fc8")
    }
    assert head == {
        "fc8_seg_conv1.weight": (512, 4096, 3, 3), "fc8_seg_conv1.bias": (512,),
        "fc8_seg_conv2.weight": (21, 512, 3, 3), "fc8_seg_conv2.bias": (21,),
    }  # fmt: skip
    assert model.net.fc8_seg_conv1.dilation == (12, 12)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained > 1.2e8


def generated_weights():
    """ResNet38's tensors under PSA's names; the way around each block carries most of its sum."""
    with torch.device("meta"):
        net = ResNet38()
    drawn = torch.Generator().manual_seed(0)
    found = {}
    for name, tensor in net.state_dict().items():
        if tensor.dim() == 4:
            last = name.endswith(("b2b1.weight", "b2b2.weight"))
            gain = 0.3 if last else 1.0
            spread = gain * (2 / tensor[0].numel()) ** 0.5
            found[name] = (spread * torch.randn(tensor.shape, generator=drawn)).half()
        elif tensor.dim() == 1:
            found[name] = torch.full(tensor.shape, float("bias" not in name and "mean" not in name))
    found["bn7.weight"] *= 0.1  # features about as large as those of trained weights
    return found


def loss_of(model, scenes):
    """Mean loss over whole scenes at a quarter of their size."""
    losses = []
    for item in scenes:
        image = torch.from_numpy(np.array(scenes.load_image(item).reduce(4)))
        mask = torch.from_numpy(np.array(scenes.load_mask(item)[2::4, 2::4]))
        with torch.no_grad():
            scores = model(normalise(image[None], model.config))
        losses.append(float(segmenter_loss(scores, mask[None].long())))
    return sum(losses) / len(losses)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["paper-voc-seg", "mctformer-voc-seg"])
def test_deeplabv1_trains_from_generated_weights(wsssfast, tmp_path, recipe):
    """Twelve steps of the shipped recipe, at a smaller crop."""
    weights = generated_weights()
    torch.save(weights, tmp_path / "res38.pth")
    scenes = open_dataset("synthetic", split="train:48")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Segmenter(SegmenterConfig(scenes.class_names, "resnet38")).eval()
    load_resnet38(model.net.core, tmp_path / "res38.pth")
    some = scenes.subset(lambda n, item: n % 6 == 0, "some")
    before = loss_of(model, some)
    out = tmp_path / "run"
    code, _, err = wsssfast(
        "train-seg", "--true-masks",
        "--dataset", "synthetic", "--split", "train:48", "--recipe", recipe, "--epochs", 1,
        "--crop", 65, "--least-scale", 0.25, "--most-scale", 0.3,
        "--pretrained", tmp_path / "res38.pth", "--loader-workers", 0, "--out", out,
    )  # fmt: skip
    assert code == 0, err
    assert len(read_log(out)) == 12
    model = load_segmenter(out / "last.safetensors").eval()
    after = loss_of(model, some)
    assert after < 0.8 * before, (before, after)
    trained = model.net.core.state_dict()
    frozen = {name for name, start in weights.items() if torch.equal(trained[name], start.float())}
    assert frozen == {n for n in weights if "bn" in n or n == "conv1a.weight"}
