"""Scores that walk over affinities, against dense matrices, and the labels that come of them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import as_pairs, bytes_of, folder_dataset, tiny_config, tiny_model

from wsssfast.cam_options import CamOptions
from wsssfast.compute import captures, near_affinities, prepare
from wsssfast.data import open_dataset
from wsssfast.errors import WsssError
from wsssfast.export import export_cams
from wsssfast.kernels import walk_reference
from wsssfast.kernels.affinity import OFFSETS, near_affinity
from wsssfast.labels.options import VIT, LabelOptions, Walk, options_of
from wsssfast.labels.rules import class_scores, pseudo_labels
from wsssfast.labels.run import export_labels, export_labels_of_images
from wsssfast.labels.walk import seen_by, walk_by, walked
from wsssfast.models.affinity import AffinityConfig, AffinityNet
from wsssfast.models.checkpoint import load_again, save_model
from wsssfast.shards import CamShards, LabelShards

NAMES = ("cat", "cow", "dog")
SIZES = ((88, 80), (88, 80), (61, 47), (1, 1), (7, 90))
BUDGET = 1e-6  # of scores in [0, 1]: float32 pooling and interpolation


def tiny_net(seed=0, boundary=False):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AffinityNet(
            AffinityConfig(NAMES, "vit", tiny_config(NAMES), boundary=boundary)
        ).eval()


def random_cam(height, width, count=2):
    coarse = torch.rand(1, count, 5, 6, generator=torch.Generator().manual_seed(2))
    return F.interpolate(coarse, (height, width), mode="bilinear")[0]


def random_image(height, width):
    return torch.randint(
        0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )


def dense(pairs, scores, walk):
    """As PSA's infer_aff.py: padded, pooled, T^steps, up by 8, cropped; float64."""
    height, width = scores.shape[1:]
    padded = F.pad(scores.double(), (0, -width % 8, 0, -height % 8))
    found = walk_reference.dense_walk(pairs, F.avg_pool2d(padded, 8), walk.beta, walk.steps)
    return F.interpolate(found[None], scale_factor=8, mode="bilinear")[0, :, :height, :width]


@pytest.mark.parametrize("size", [(80, 88), (75, 93), (33, 200), (7, 5), (1, 1)])
def test_backgrounds_and_classes_walk_as_in_psa(size):
    options = LabelOptions(
        "final", background_exponent=(2, 8), refine="affinity", walk=Walk("x", 4, 8)
    )
    cam, affinity = random_cam(*size), seen_by(tiny_net(), random_image(*size))
    found = walked(cam, affinity, options, class_scores)
    assert found.shape == (2, 3, *size)
    for one, scores in zip(found, class_scores(cam, options), strict=True):
        wanted = dense(as_pairs(affinity.pairs), scores, options.walk)
        assert (one - wanted).abs().max() <= BUDGET
    assert found.min() >= 0 and found.max() <= 1 + BUDGET


def test_with_boundaries_classes_alone_walk_as_in_irn():
    options = LabelOptions("final", (0.25,), refine="affinity", walk=Walk("x", 10, 16))
    cam, affinity = random_cam(64, 80), seen_by(tiny_net(boundary=True), random_image(64, 80))
    assert affinity.boundary.shape == (8, 10)
    inside = F.avg_pool2d(cam.double(), 8) * (1 - affinity.boundary.double())
    wanted = walk_reference.dense_walk(as_pairs(affinity.pairs), inside, 10, 16)
    wanted = F.interpolate(wanted[None], scale_factor=8, mode="bilinear")[0]
    found = walked(cam, affinity, options, class_scores)[0]
    assert (found[1:] - wanted / wanted.max()).abs().max() <= BUDGET
    assert found[0].eq(0.25).all()


def test_large_images_are_seen_smaller(monkeypatch):
    monkeypatch.setattr("wsssfast.labels.walk.LARGEST", 1 << 14)
    affinity = seen_by(tiny_net(), random_image(1, 1).expand(160, 400, 3))
    assert affinity.pairs.shape == (34, 10, 25)  # 80 x 200 pixels
    options = LabelOptions("final", (0.4,), refine="affinity", walk=Walk("x", 8, 2))
    found = walked(torch.full((1, 160, 400), 0.7), affinity, options, class_scores)
    assert torch.allclose(found[0, 0], torch.tensor(0.4))
    assert torch.allclose(found[0, 1], torch.tensor(0.7))


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (6, 11)])
def test_affinities_by_attention_are_those_of_each_pair(grid):
    height, width = grid
    generator = torch.Generator().manual_seed(0)
    attention = torch.rand(height * width, height * width, generator=generator).double()
    found = as_pairs(near_affinity(attention, grid))
    cells = [(y, x) for y in range(height) for x in range(width)]

    def near(a, b):
        return (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 < 25

    most = [max(attention[i, j] for j, b in enumerate(cells) if near(a, b))
            for i, a in enumerate(cells)]  # fmt: skip
    wanted = {
        (*a, *b): float((attention[i, j] + attention[j, i]) / (most[i] + most[j]))
        for i, a in enumerate(cells) for j, b in enumerate(cells) if j > i and near(a, b)
    }  # fmt: skip
    assert found.keys() == wanted.keys()
    assert all(abs(found[pair] - value) < 1e-12 for pair, value in wanted.items())
    assert all(0 < value <= 1 for value in found.values())


def test_attention_of_mirror_images_is_turned_back(dataset):
    model, options = tiny_model(), CamOptions()
    image = dataset.load_image(dataset.items[0])
    both = []
    for one in (image, image.transpose(0)):
        pixels = [prepare(one, options, model.patch_size)]
        ((captured, _),) = captures(model, pixels, [(0,)], options)
        both.append(near_affinities(captured, 1)[0])
    there, back = both
    for n, (dy, dx) in enumerate(OFFSETS):
        mirrored = there[n].flip(-1)
        if dy == 0:  # the pair is kept at its other end
            mirrored = mirrored.roll(-dx, -1)
            assert torch.allclose(back[n], mirrored, atol=1e-5)
        else:
            assert torch.allclose(back[OFFSETS.index((dy, -dx))], mirrored, atol=1e-5)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return open_dataset("folder", folder_dataset(tmp_path_factory.mktemp("data") / "d", SIZES))


@pytest.fixture(scope="module")
def made(tmp_path_factory, dataset):
    """CAM shards of the data set, and the file of an AffinityNet."""
    folder = tmp_path_factory.mktemp("walk")
    model = tiny_model(classes=dataset.class_names)
    export_cams(model, dataset, folder / "cams", CamOptions(), shard_size=2)
    save_model(tiny_net(), folder / "net.safetensors")
    return CamShards(folder / "cams"), folder / "net.safetensors"


def refined(path, refine="affinity+crf"):
    walk = walk_by(str(path), NAMES, 4, 8)
    return LabelOptions("final", (0.3, 0.5), refine=refine, walk=walk)


def test_masks_are_those_of_each_image_alone(made, dataset, tmp_path):
    cams, path = made
    options = refined(path)
    for workers in (1, 2):
        summary = export_labels(
            cams, tmp_path / str(workers), options, dataset, network=path, crf_workers=workers
        )
        assert (summary.images, summary.failed) == (5, {})
    assert bytes_of(tmp_path / "1") == bytes_of(tmp_path / "2")
    shards = LabelShards(tmp_path / "1")
    net = tiny_net()
    for image_id in cams:
        labels, maps = cams.cam(image_id)
        image = np.array(dataset.load_image(dataset.by_id[image_id]))
        affinity = seen_by(net, torch.from_numpy(image))
        (wanted,) = pseudo_labels([torch.from_numpy(maps)], [labels], [image], options, [affinity])
        assert np.array_equal(shards.mask(image_id), wanted)
    assert options_of(shards.identity) == options
    straight = export_labels_of_images(
        tiny_model(classes=dataset.class_names), dataset, tmp_path / "3", CamOptions(), options,
        network=path, shard_size=2,
    )  # fmt: skip
    assert straight.images == 5
    assert bytes_of(tmp_path / "3", "*.h5") == bytes_of(tmp_path / "1", "*.h5")


def test_the_attention_of_the_classifier_needs_no_other_network(made, dataset, tmp_path):
    cams, _ = made
    options = LabelOptions("final", (0.3,), refine="affinity", walk=Walk(VIT, 2, 4))
    model = tiny_model(classes=dataset.class_names)
    for batch in (1, 4):
        summary = export_labels_of_images(
            model, dataset, tmp_path / str(batch), CamOptions(), options, batch_size=batch
        )
        assert (summary.images, summary.failed) == (5, {})
    plain = LabelOptions("final", (0.3,))
    export_labels_of_images(model, dataset, tmp_path / "plain", CamOptions(), plain)
    walked_, unwalked = LabelShards(tmp_path / "4"), LabelShards(tmp_path / "plain")
    assert any((walked_.mask(i) != unwalked.mask(i)).any() for i in walked_)
    assert not any((walked_.mask(i) != LabelShards(tmp_path / "1").mask(i)).any() for i in walked_)
    with pytest.raises(WsssError, match="found CAM shards"):
        export_labels(cams, tmp_path / "no", options, dataset)


def test_what_does_not_fit_is_refused(made, dataset, tmp_path):
    cams, path = made
    with pytest.raises(WsssError, match="of these 20 classes"):
        walk_by(str(path), ("aeroplane",) * 20, 8, 64)
    with pytest.raises(WsssError, match="beta above 0"):
        walk_by(VIT, NAMES, 0, 64)
    with pytest.raises(WsssError, match="steps of the walk"):
        walk_by(VIT, NAMES, 8, -1)
    with pytest.raises(WsssError, match="Expected an affinity for the refinement affinity"):
        LabelOptions("final", (0.3,), refine="affinity")
    with pytest.raises(WsssError, match="exactly where"):
        export_labels(cams, tmp_path / "no", refined(path), dataset)
    save_model(tiny_net(seed=1), tmp_path / "other.safetensors")
    load_again.cache_clear()
    with pytest.raises(WsssError, match="to stay as they were"):
        export_labels(
            cams, tmp_path / "no", refined(path), dataset, network=tmp_path / "other.safetensors"
        )
