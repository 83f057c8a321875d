"""What notebooks use: images of any kind, masks, overlays."""

import numpy as np
import pytest
import torch
from PIL import Image
from support import random_image, tiny_model

import wsssfast
from wsssfast.data.palette import mask_palette
from wsssfast.errors import BadFile, WsssError
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
        (np.zeros((0, 8, 3), np.uint8), "uint8 \\[0, 8, 3\\]"),
        ("cat.jpg", "found str"),
    ],
)
def test_what_is_no_image_is_told(given, told):
    with pytest.raises(WsssError, match=told):
        as_image(given)


def test_maps_come_in_the_order_of_the_labels_and_stages_together():
    model, image = tiny_model(), random_image(40, 30)
    options = wsssfast.CamOptions(stages=("original", "final"))
    (sorted_maps,) = wsssfast.stage_cams(model, [image], [["cat", "cow"]], options)
    (found,) = wsssfast.stage_cams(model, [image], [["cow", 0]], options)
    assert list(found) == ["original", "final"]
    for stage, maps in found.items():
        assert np.array_equal(maps, sorted_maps[stage][::-1])
        assert np.array_equal(
            maps, wsssfast.cams(model, [image], [[2, 0]], options, stage=stage)[0]
        )
    with torch.autocast("cpu", torch.bfloat16):
        (within,) = wsssfast.cams(model, [image], [["cow", 0]])
    assert np.array_equal(within, found["final"])


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (np.array([1, 0, 1]), r"each class once, found \[1, 0, 1\]. Of a vector .* np.flatnonzero"),
        (["cat", 0], "each class once"),
        ([1.9], "indices or names, found 1.9"),
        ([True], "indices or names, found True"),
        ([None], "indices or names, found None"),
        ([3], "Unknown class 3"),
    ],
)
def test_what_is_no_list_of_classes_is_told(labels, told):
    with pytest.raises(WsssError, match=told):
        wsssfast.cams(tiny_model(), [random_image(20, 20)], [labels])


@pytest.mark.parametrize(
    ("model", "told"),
    [(torch.nn.Linear(2, 2), "found Linear"), (tiny_model().double(), "found torch.float64")],
)
def test_another_model_is_told(model, told):
    with pytest.raises(WsssError, match=told):
        wsssfast.cams(model, [random_image(20, 20)], [["cat"]])


@pytest.mark.parametrize("background", [(0.5, 0.3), (0.3,) * 3, float("nan"), -1, (), "x", None])
def test_another_background_is_told(background):
    with pytest.raises(WsssError, match="Expected one background threshold"):
        wsssfast.mask_of(tiny_model(), np.zeros((1, 2, 2), np.float32), ["cat"], background)


@pytest.mark.parametrize("value", [float("nan"), 200, -1])
def test_other_maps_are_told(value):
    with pytest.raises(WsssError, match=r"maps in \[0, 1\]"):
        wsssfast.mask_of(tiny_model(), np.full((1, 2, 2), value, np.float32), ["cat"])


@pytest.mark.parametrize(
    "wrong", [{"flip": "no"}, {"c2p_layers": 2.5}, {"scales": 1.0}, {"scales": [1.0]}]
)
def test_options_of_other_types_are_told(wrong):
    with pytest.raises(WsssError, match="of type"):
        wsssfast.CamOptions(**wrong)


def test_an_image_of_floats_is_told():
    with pytest.raises(BadFile, match="32-bit floats"):
        as_image(Image.new("F", (8, 8)))


def test_masks_follow_the_thresholds():
    model = tiny_model()
    maps = np.array([[[0.2, 0.6, 0.3]], [[0.1, 0.5, 0.9]]], np.float32)
    labels = ["cow", 0]
    assert wsssfast.mask_of(model, maps, labels, 0.4).tolist() == [[0, 3, 1]]
    assert wsssfast.mask_of(model, maps, labels, (0.4, 0.7)).tolist() == [[0, 255, 1]]
    assert wsssfast.mask_of(model, np.full_like(maps, 0.5), labels).tolist() == [[1, 1, 1]]
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
    assert np.array_equal(wsssfast.overlay(image, mask.astype(np.int64)), over)
    nan, large = np.full((3, 4), np.nan, np.float32), np.full((3, 4), 256)
    for odd in (np.zeros((2, 3, 4), np.float32), torch.zeros(3, 4), nan, large):
        with pytest.raises(WsssError, match="Expected a map"):
            wsssfast.overlay(image, odd)
    assert isinstance(wsssfast.overlay(np.asarray(image), mask), Image.Image)
