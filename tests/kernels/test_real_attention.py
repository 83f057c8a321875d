"""Every backend on the attention of a trained network over real images, against float64."""

import numpy as np
import pytest
import torch
from support import CLASSIFIER, SHARED, needs_shared

from wsssfast import kernels
from wsssfast.data import open_dataset
from wsssfast.kernels import reference
from wsssfast.models import classifier
from wsssfast.models.checkpoint import load_model
from wsssfast.preprocess import to_tensor

pytestmark = needs_shared
THRESHOLDS = np.arange(60)[:, None, None] / 100


class Recorded(kernels.AttentionCapture):
    """Keeps every layer's queries and keys in float64 on the way."""

    layers: list

    def attend(self, layer, query, key, value, scale=None):
        self.layers.append((query.double(), key.double(), scale))
        return super().attend(layer, query, key, value, scale)


@pytest.fixture(scope="module")
def model():
    return load_model(CLASSIFIER)


@pytest.fixture(scope="module")
def val():
    return open_dataset("voc", SHARED / "data/voc", "val")


def captured_twice(model, image, backend, monkeypatch):
    """A backend's capture, and c2p and p2p of the same queries and keys in float64."""
    monkeypatch.setattr(classifier.kernels, "AttentionCapture", Recorded)
    monkeypatch.setattr(Recorded, "layers", [], raising=False)
    captured = model.capture(to_tensor([image], model.config), backend=backend)
    means = [reference.attention_probabilities(q, k, s).mean(1) for q, k, s in Recorded.layers]
    return captured, reference.class_and_patch_attention(means, model.num_classes, 3, 12)


def masks(cam, grid, size):
    """The mask of every threshold, [60, H, W]."""
    maps = kernels.full_size_cam([cam.reshape(-1, *grid)], size, 1e-8).cpu().numpy()
    return np.where(maps.max(0) > THRESHOLDS, maps.argmax(0) + 1, 0)


@pytest.mark.parametrize(("backend", "side", "step"), [("triton", 96, 241), ("eager", 304, 91)])
def test_final_cam_of_the_whole_chain(model, val, backend, side, step, monkeypatch):
    """Small images in the interpreter, whole ones on the CPU path; images of 96 and 304 pixels."""
    different = pixels = 0
    for item in val.items[7::step]:
        image = val.load_image(item)
        image.thumbnail((side * 4 // 3, side))
        captured, (c2p, p2p) = captured_twice(model, image, backend, monkeypatch)
        assert (captured.c2p - c2p).abs().max() <= 1e-6
        assert (captured.p2p - p2p).abs().max() <= 1e-6
        same = captured.p2p.float()
        chosen = kernels.related_patches(same, 0.3, backend=backend)
        assert torch.equal(chosen, kernels.related_patches(same, 0.3, backend="reference"))
        labels, grid = list(item.labels), captured.cam.shape[-2:]
        cam = captured.cam.flatten(2)[:, labels]
        found = kernels.refine(cam, captured.c2p[:, labels], captured.p2p, backend=backend)
        wanted = kernels.refine(cam.double(), c2p[:, labels], p2p, backend="reference")
        span = wanted["final"].amax(-1) - wanted["final"].amin(-1)
        assert ((found["final"] - wanted["final"]).abs().amax(-1) <= 1e-4 * span).all(), item.id
        size = (image.height, image.width)
        both = [masks(maps["final"][0], grid, size) for maps in (found, wanted)]
        different += int((both[0] != both[1]).sum())
        pixels += both[0].size
    assert different <= 1e-4 * pixels
