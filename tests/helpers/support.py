"""What several tests need: the shared data's place, a tiny classifier, tiny data sets."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsssfast.kernels.affinity import OFFSETS
from wsssfast.models.classifier import ClassTokenViT
from wsssfast.models.classifier_config import ClassifierConfig
from wsssfast.shards.format import FORMAT_VERSION
from wsssfast.shards.label_shards import LabelRecord, LabelShards, write_label_shard

SHARED = Path(__file__).resolve().parents[3] / "shared"
CLASSIFIER = SHARED / "weights" / "mctformer_v2_deit_tiny_voc_subset.pth"
BACKBONE = SHARED / "weights" / "deit_tiny_patch16_224_lnq8.pth"

needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the real data and weights in ../shared are not here"
)


def tiny_config(classes=("cat", "dog", "cow"), **changes):
    options = {"patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}
    return ClassifierConfig(
        class_names=tuple(classes),
        arch="deit_tiny_patch16_224",
        arch_options=options,
        image_size=32,
        **changes,
    )


def tiny_model(seed=0, **changes):
    """A random classifier whose attention is far from uniform and whose CAM has both signs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ClassTokenViT(tiny_config(**changes))
        for block in model.blocks:
            torch.nn.init.normal_(block.attn.qkv.weight, std=0.2)
    return model.eval()


def random_image(width, height, seed=0):
    rng = np.random.RandomState(seed)
    coarse = Image.fromarray(rng.randint(0, 256, (5, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def folder_dataset(root, sizes=((40, 32), (40, 32), (33, 47), (64, 24)), extension="png"):
    """A folder data set of random images of three classes with masks."""
    rng = np.random.RandomState(1)
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    rows = ["image,labels"]
    names = ("cat", "dog", "cow")
    for n, (width, height) in enumerate(sizes):
        random_image(width, height, n).save(root / "images" / f"im{n}.{extension}")
        classes = sorted(rng.choice(3, size=1 + n % 2, replace=False))
        mask = rng.choice([0, 255, *[c + 1 for c in classes]], size=(height, width))
        Image.fromarray(mask.astype(np.uint8)).save(root / "masks" / f"im{n}.png")
        rows.append(f"im{n}.{extension},{';'.join(names[c] for c in classes)}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    (root / "classes.txt").write_text("\n".join(names) + "\n")
    return root


def as_labels(out, dataset):
    """Label shards of a data set's true masks."""
    out.mkdir()
    records = [LabelRecord.of(i.id, i.labels, dataset.load_mask(i)) for i in dataset]
    identity = {"format_version": FORMAT_VERSION, "class_names": list(dataset.class_names)}
    write_label_shard(out, 0, 1, records, failed={}, identity=identity, config={}, versions={})
    return LabelShards(out)


def bytes_of(folder, pattern="*"):
    """Content of each file of a folder by its name."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern))}


def as_pairs(affinity):
    """The pairs of affinities [34, h, w] by their cells, those of 0 left out."""
    return {
        (y, x, y + dy, x + dx): float(affinity[n, y, x])
        for n, (dy, dx) in enumerate(OFFSETS)
        for y, x in affinity[n].nonzero().tolist()
    }


def run_with_little_room(most_bytes, words):
    """`wsssfast WORDS` where no file may grow beyond a size, in place of a full disk."""
    script = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)\n"
        "from wsssfast.cli.main import run\n"
        "run()"
    )
    command = [sys.executable, "-c", script, str(most_bytes), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)
