"""What notebooks use: images of any kind, masks, overlays."""

import numpy as np
import pytest
import torch
from PIL import Image
from support import random_image, tiny_model

import wsssfast
from wsssfast.data.palette import mask_palette
from wsssfast.errors import WsssError
from wsssfast.notebook import as_image


def test_images_of_any_kind_give_the_same_maps():
    image = random_image(40, 30)
    pixels = np.asarray(image)
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    given = [image, pixels, tensor, tensor / 255, (tensor / 255).double()]
    first, *others = wsssfast.cams(tiny_model(), given, [["dog", "cat"]] * 5)
    assert first.shape == (2, 30, 40)
    assert all(np.array_equal(first, other) for other in others)
    grey = np.asarray(image.convert("L"))
    assert np.array_equal(np.asarray(as_image(grey))[..., 0], grey)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (torch.randn(3, 8, 8), "in \\[0, 1\\]"),
        (torch.full((3, 8, 8), float("nan")), "in \\[0, 1\\]"),
        (torch.zeros(1, 3, 8, 8), "\\[3, H, W\\]"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "int64"),
        (np.zeros((8, 8, 3)), "float64 \\[8, 8, 3\\]"),
        (np.zeros((8, 8, 4), np.uint8), "uint8 \\[8, 8, 4\\]"),
        ("cat.jpg", "found str"),
    ],
)
def test_what_is_no_image_is_told(given, told):
    with pytest.raises(WsssError, match=told):
        as_image(given)


def test_masks_follow_the_thresholds():
    model = tiny_model()
    maps = np.array([[[0.1, 0.5, 0.9]], [[0.2, 0.6, 0.3]]], np.float32)
    labels = ["cow", 0]  # maps come in the order of classes: cat, cow
    assert wsssfast.mask_of(model, maps, labels, 0.4).tolist() == [[0, 3, 1]]
    assert wsssfast.mask_of(model, maps, labels, (0.4, 0.7)).tolist() == [[0, 255, 1]]
    with pytest.raises(WsssError, match="maps of 1 classes"):
        wsssfast.mask_of(model, maps, ["cow"])
    with pytest.raises(WsssError, match="labels of 2 images"):
        wsssfast.cams(model, [random_image(20, 20)] * 2, [["cat"]])


@pytest.mark.parametrize("labels", [["dog"], "dog", [3], [["dog"], "cat"]])
def test_one_where_a_list_is_expected_is_told(labels):
    image = random_image(20, 20)
    for one in (image, np.asarray(image), "cat.jpg"):
        with pytest.raises(WsssError, match=rf"images, found {type(one).__name__}. Put it in \["):
            wsssfast.cams(tiny_model(), one, [["dog"]])
    with pytest.raises(WsssError, match="Expected a list of classes for each image, found"):
        wsssfast.cams(tiny_model(), [image], labels)
    with pytest.raises(WsssError, match=r"found the text 'dog'. Put it in \["):
        wsssfast.mask_of(tiny_model(), np.zeros((1, 2, 2), np.float32), "dog")


class Axes:
    """What is used of matplotlib's."""

    def __init__(self):
        self.done = []

    def imshow(self, picture):
        self.done.append(picture.size)

    def set_axis_off(self):
        self.done.append("off")


def test_overlays_have_the_image_s_size():
    image, axes = random_image(40, 30), Axes()
    heat = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    found = wsssfast.overlay(image, heat, axes)
    assert (found.mode, found.size, axes.done) == ("RGB", (40, 30), [(40, 30), "off"])
    assert np.array_equal(wsssfast.overlay(image, heat.astype(np.float64)), found)
    mask = np.zeros((30, 40), np.uint8)
    mask[10:] = 2
    under, over = np.asarray(image, float), np.asarray(wsssfast.overlay(image, mask), float)
    assert np.array_equal(under[:10], over[:10])
    assert np.allclose(over[10:], 0.45 * under[10:] + 0.55 * mask_palette()[2], atol=1)
    for odd in (np.zeros((2, 3, 4), np.float32), np.zeros((3, 4), np.int64)):
        with pytest.raises(WsssError, match="Expected a map"):
            wsssfast.overlay(image, odd)
    assert isinstance(wsssfast.overlay(np.asarray(image), mask), Image.Image)
