"""The method and the store on real images, with the trained classifier of ../shared."""

import numpy as np
import pytest
import torch
from support import CLASSIFIER, SHARED, needs_shared

from wsssfast.cam_options import CamOptions
from wsssfast.data import open_dataset
from wsssfast.evaluate import THRESHOLDS
from wsssfast.export import export_cams
from wsssfast.kernels import PROPAGATIONS, STAGES, refine
from wsssfast.models.checkpoint import load_model
from wsssfast.notebook import cams
from wsssfast.preprocess import to_tensor
from wsssfast.shards import open_shards

pytestmark = needs_shared


@pytest.fixture(scope="module")
def val():
    return open_dataset("voc", SHARED / "data/voc", "val")


@pytest.fixture(scope="module")
def model():
    return load_model(CLASSIFIER)


@pytest.mark.parametrize("related_by", ["attention", "tokens"])
def test_every_stage_agrees_with_float64_to_1e5_of_its_range(val, model, related_by):
    """float32 refinement of real attention against the float64 reference on the same attention."""
    for item in val.items[::145]:
        captured = model.capture(to_tensor([val.load_image(item)], model.config))
        labels = list(item.labels)
        cam, c2p = captured.cam.flatten(2)[:, labels], captured.c2p[:, labels]
        tokens = captured.tokens if related_by == "tokens" else None
        for propagation in PROPAGATIONS:
            fast = refine(cam, c2p, captured.p2p, STAGES, tokens=tokens, propagation=propagation)
            slow = refine(
                cam.double(), c2p.double(), captured.p2p.double(), STAGES,
                tokens=None if tokens is None else tokens.double(), propagation=propagation,
                backend="reference",
            )  # fmt: skip
            for stage in STAGES:
                span = slow[stage].amax(-1) - slow[stage].amin(-1)
                error = (fast[stage] - slow[stage]).abs().amax(-1)
                assert (error <= 1e-5 * span).all(), (item.id, stage)


def test_the_float32_network_stays_close_to_float64(val, model):
    """End to end the network's own rounding shows: 1.1e-5 of the range, and more in `modulated`
    where two patches that float32 cannot tell apart change places in the ranking."""
    precise = load_model(CLASSIFIER).double()
    for item in val.items[50::240]:
        inputs = to_tensor([val.load_image(item)], model.config)
        fast, slow = model.capture(inputs), precise.capture(inputs.double(), backend="reference")
        for a, b, error in ((fast.cam, slow.cam, 2e-5), (fast.c2p, slow.c2p, 1e-5),
                            (fast.p2p, slow.p2p, 1e-5)):  # fmt: skip
            assert (a - b).abs().max() <= error * (b.max() - b.min())


def test_shards_give_the_masks_of_direct_computation(val, model, tmp_path):
    """100 real images, every threshold of the sweep: at least 99.99 % of the pixels."""
    listed = tmp_path / "hundred.txt"
    listed.write_text("\n".join(item.id for item in val.items[3::7][:100]))
    dataset = open_dataset("voc", SHARED / "data/voc", str(listed))
    assert len(dataset) == 100
    options = CamOptions()
    export_cams(model, dataset, tmp_path / "cams", options)
    shards = open_shards(tmp_path / "cams")
    cuts = np.array(THRESHOLDS, np.float32)[:, None, None]
    different = np.zeros(len(cuts), np.int64)
    pixels = 0
    for item in dataset:
        direct = cams(model, [dataset.load_image(item)], [item.labels], options)[0]
        stored = shards.cam(item.id)[1]
        segmented = [
            np.where(maps.max(0) > cuts, maps.argmax(0) + 1, 0) for maps in (direct, stored)
        ]
        different += (segmented[0] != segmented[1]).sum((1, 2))
        pixels += direct[0].size
    assert pixels > 5_000_000
    assert (different <= 1e-4 * pixels).all(), different / pixels


def test_batches_of_other_sizes_agree_to_1e5_of_the_range(val, model):
    image = val.load_image(val.items[0])
    inputs = to_tensor([image], model.config)
    mixed = torch.cat([inputs, inputs.flip(-1), torch.randn_like(inputs)])
    alone, together = model.capture(inputs), model.capture(mixed)
    for name, a, b in zip(alone._fields, alone, together, strict=True):
        batch = (slice(None), 0) if name == "c2p_by_layer" else (0,)
        assert (a[batch] - b[batch]).abs().max() <= 2e-5 * (a.max() - a.min()), name
