"""Probabilities of images: scales, mirror images and windows as the method says them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import random_image, tiny_config

from wsssfast.errors import WsssError
from wsssfast.models.segmenter import Segmenter, SegmenterConfig
from wsssfast.preprocess import to_tensor
from wsssfast.segment import SegmentOptions, probabilities

NAMES = ("cat", "dog", "cow")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Segmenter(SegmenterConfig(NAMES, "vit", tiny_config(NAMES))).eval()


class Pointwise(torch.nn.Module):
    """A segmenter that looks at single pixels: windows change nothing but what they miss."""

    def __init__(self):
        super().__init__()
        self.config = SegmenterConfig(NAMES)
        self.layer = torch.nn.Conv2d(3, 4, 1)
        self.sizes = []

    def forward(self, images):
        self.sizes.append(tuple(images.shape[-2:]))
        return self.layer(images)


@pytest.mark.parametrize("size", [(40, 32), (33, 47), (5, 61), (1, 1)])
@pytest.mark.parametrize("fuse", ["max", "mean"])
@pytest.mark.parametrize("flip", [False, True])
@torch.no_grad()
def test_it_is_the_loop_of_mctformers_test(model, size, fuse, flip):
    """Its infer_seg.py, step by step."""
    image = random_image(*size)
    pixels = to_tensor([image], model.config)
    height, width = pixels.shape[-2:]
    found = []
    for scale in (0.5, 1.0, 1.5):
        new = [max(1, int(height * scale)), max(1, int(width * scale))]
        seen = F.interpolate(pixels, new, mode="bilinear", align_corners=True)
        for mirrored in (False, True)[: 1 + flip]:
            scores = model(seen.flip(-1) if mirrored else seen)
            scores = scores.flip(-1) if mirrored else scores
            scores = F.interpolate(scores, (height, width), mode="bilinear", align_corners=False)
            found.append(F.softmax(scores, 1)[0])
    wanted = torch.stack(found).amax(0) if fuse == "max" else torch.stack(found).mean(0)
    options = SegmentOptions((0.5, 1.0, 1.5), fuse, flip)
    ours = probabilities(model, torch.from_numpy(np.array(image)), options)
    assert ours.shape == (4, height, width) and ours.dtype == torch.float32
    assert torch.allclose(ours, wanted, atol=1e-5)


@pytest.mark.parametrize("size", [(100, 50), (64, 64), (33, 200), (65, 96), (40, 40)])
def test_windows_cover_everything_evenly(size):
    height, width = size
    model = Pointwise().eval()
    image = torch.from_numpy(np.array(random_image(width, height)))
    whole = probabilities(model, image, SegmentOptions(flip=False))
    model.sizes.clear()
    tiled = probabilities(model, image, SegmentOptions(flip=False, tile=48))
    assert torch.allclose(whole, tiled, atol=1e-6)
    assert set(model.sizes) == {(min(48, height), min(48, width))}
    rows, columns = (1 if side <= 48 else 1 + -(-(side - 48) // 32) for side in size)
    assert len(model.sizes) == rows * columns


def test_windows_are_averaged_where_they_overlap():
    """Each window adds its own number: what lies in several is their mean."""

    class Counting(Pointwise):
        def forward(self, images):
            super().forward(images)
            scores = images.new_zeros(1, 4, *images.shape[-2:])
            scores[:, 0] = len(self.sizes)
            return scores

    image = torch.zeros(32, 56, 3, dtype=torch.uint8)
    found = probabilities(Counting(), image, SegmentOptions(flip=False, tile=32))
    energy = (found[0] / found[1]).log()[0]
    parts = energy.unique_consecutive(return_counts=True)
    assert [round(x, 3) for x in parts[0].tolist()] == [1.0, 1.5, 2.0, 2.5, 3.0]
    assert parts[1].tolist() == [12, 20, 4, 8, 12] or parts[1].sum() == 56


@pytest.mark.parametrize(
    "wrong", [{"scales": ()}, {"scales": (0.0,)}, {"scales": (99.0,)}, {"tile": 5}, {"tile": -1}]
)
def test_odd_options_are_refused(wrong):
    with pytest.raises(WsssError, match=r"Expected (scales|windows)"):
        SegmentOptions(**wrong)
