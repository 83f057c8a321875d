"""AffinityNet's labels, crops, loss and training."""

import numpy as np
import pytest
import torch
from PIL import Image
from support import folder_dataset, tiny_config, tiny_model

from wsssfast.cam_options import CamOptions
from wsssfast.data import open_dataset
from wsssfast.errors import WsssError
from wsssfast.export import export_cams
from wsssfast.kernels import walk_reference
from wsssfast.kernels.affinity import OFFSETS, pair_affinity
from wsssfast.labels.options import LabelOptions
from wsssfast.models.affinity import AffinityConfig
from wsssfast.models.checkpoint import load_affinity, load_model
from wsssfast.shards import CamShards
from wsssfast.shards.label_shards import LabelShards
from wsssfast.training.affinity import affinity_loss, crop
from wsssfast.training.affinity_run import CELLS, label_cells, train_affinity
from wsssfast.training.options import AffinityOptions, RunOptions
from wsssfast.training.starts import from_classifier

NAMES = ("cat", "cow", "dog")
CONFIG = AffinityConfig(NAMES, "vit", tiny_config(NAMES))
OPTIONS = AffinityOptions(epochs=2, batch_size=2, rate=0.01, rate_batch=2, crop=72)
ALONE = RunOptions(loader_workers=0)


@pytest.mark.parametrize("ignored", [0.0, 0.3, 1.0])
def test_the_loss_is_the_mean_over_each_kind_of_pair(ignored):
    generator = torch.Generator().manual_seed(0)
    affinity = pair_affinity(torch.randn(1, 3, 7, 12, generator=generator).double())
    cells = torch.randint(0, 3, (1, 7, 12), generator=generator).to(torch.uint8)
    cells[torch.rand(1, 7, 12, generator=generator) < ignored] = 255
    pairs = {
        (y, x, other_y, other_x): affinity[0, OFFSETS.index((other_y - y, other_x - x)), y, x]
        for y, x, other_y, other_x in walk_reference.pairs(7, 12)
    }
    wanted = walk_reference.affinity_loss(pairs, cells[0])
    assert torch.allclose(affinity_loss(affinity, cells), wanted.double(), atol=1e-12)


@pytest.mark.parametrize("size", [(200, 152), (50, 60), (203, 45)])
def test_a_crop_shows_the_pixels_of_its_cells(size):
    width, height = size
    rows, columns = -(-height // 8), -(-width // 8)
    cells = np.arange(rows * columns, dtype=np.uint8).reshape(rows, columns) % 250
    grey = np.repeat(np.repeat(cells, 8, 0), 8, 1)[:height, :width]
    image = Image.fromarray(np.repeat(grey[..., None], 3, 2))
    config = AffinityConfig(NAMES, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
    seen = set()
    for seed in range(20):
        pixels, target = crop(image, cells, 12, config, np.random.RandomState(seed))
        assert pixels.shape == (3, 96, 96) and target.shape == (12, 12)
        squares = pixels[0].unfold(0, 8, 8).unfold(1, 8, 8).amax((2, 3)).round().int().numpy()
        inside = target != 255
        assert np.array_equal(squares[inside], target[inside])
        assert not squares[~inside].any()
        assert inside.sum() == min(12, rows) * min(12, columns)
        seen.add(target.tobytes())
    assert len(seen) > 10


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A data set of four images, and the labels of their cells."""
    root = tmp_path_factory.mktemp("affinity")
    sizes = ((90, 80), (80, 90), (60, 47), (104, 96))
    dataset = open_dataset("folder", folder_dataset(root / "data", sizes=sizes))
    model = tiny_model(classes=dataset.class_names)
    export_cams(model, dataset, root / "cams", CamOptions())
    options = LabelOptions("final", background_exponent=(0.5, 2), refine="crf")
    label_cells(CamShards(root / "cams"), dataset, root, options)
    return dataset, LabelShards(root / CELLS)


def test_cells_are_those_of_whole_images(made):
    dataset, cells = made
    assert cells.identity["cell"] == 8
    for item in dataset.items:
        width, height = dataset.image_size(item)
        assert cells.mask(item.id).shape == (-(-height // 8), -(-width // 8))


def test_training_goes_on_as_if_never_stopped(made, tmp_path):
    dataset, cells = made
    config = AffinityConfig(dataset.class_names, "vit", tiny_config(dataset.class_names))
    whole, done = train_affinity(dataset, cells, config, OPTIONS, tmp_path / "a", run=ALONE)
    assert done.step == 4
    steps = []

    def stop(told):
        steps.append(told.step)
        if told.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_affinity(dataset, cells, config, OPTIONS, tmp_path / "b", run=ALONE, report=stop)
    assert steps == [2]
    again, _ = train_affinity(dataset, cells, config, OPTIONS, tmp_path / "b", run=ALONE)
    found = load_affinity(tmp_path / "b" / "last.safetensors")
    assert found.config == config
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        assert torch.equal(tensor, found.state_dict()[name])


def test_a_trunk_starts_from_a_classifier(made, tmp_path):
    dataset, cells = made
    classifier = tiny_model(classes=dataset.class_names)
    config = AffinityConfig(dataset.class_names, "vit", classifier.config)
    options = AffinityOptions(**{**vars(OPTIONS), "rate": 1e-9, "epochs": 1})
    net, _ = train_affinity(
        dataset, cells, config, options, tmp_path, run=ALONE, start=from_classifier(classifier)[1]
    )
    wanted = classifier.blocks[0].attn.qkv.weight
    assert torch.allclose(net.trunk.vit.blocks[0].attn.qkv.weight, wanted, atol=1e-5)


def test_what_does_not_fit_is_told(made, tmp_path):
    dataset, cells = made
    other = AffinityConfig(("a", "b"), "vit", tiny_config(("a", "b")))
    with pytest.raises(WsssError, match="classes"):
        train_affinity(dataset, cells, other, OPTIONS, tmp_path, run=ALONE)
    with pytest.raises(WsssError, match="multiple of 8"):
        AffinityOptions(crop=100)
    with pytest.raises(WsssError, match="a file of weights"):
        load_affinity(__file__)
    config = AffinityConfig(dataset.class_names, "vit", tiny_config(dataset.class_names))
    train_affinity(dataset, cells, config, OPTIONS, tmp_path, run=ALONE)
    with pytest.raises(WsssError, match="Expected a classifier checkpoint"):
        load_model(tmp_path / "last.safetensors")
