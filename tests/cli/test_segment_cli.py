"""`train-seg`, `predict` and `evaluate seg`, from label shards to scored masks and files."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image
from support import as_labels, bytes_of, folder_dataset, tiny_config, tiny_model

from wsssfast.data import open_dataset
from wsssfast.data.voc import CLASS_NAMES
from wsssfast.models.checkpoint import load_segmenter, save_model
from wsssfast.models.segmenter import Segmenter, SegmenterConfig
from wsssfast.shards import LabelRecord, LabelShards, write_label_shard

SIZES = ((48, 40), (40, 48), (33, 47), (64, 24))
SHORT = [
    "--epochs", 2, "--batch-size", 2, "--crop", 32, "--loader-workers", 0, "--warmup-epochs", 0,
]  # fmt: skip


@pytest.fixture
def made(tmp_path):
    """Options of a data set, a classifier's checkpoint and label shards."""
    root = folder_dataset(tmp_path / "data", SIZES)
    data = ["--dataset", "folder", "--data-root", root]
    save_model(tiny_model(classes=("cat", "dog", "cow")), tmp_path / "c.safetensors")
    labels = as_labels(tmp_path / "labels", open_dataset("folder", root))
    return data, tmp_path / "c.safetensors", labels.folder


def train(made, out, *more):
    data, classifier, labels = made
    return ["train-seg", "--label-shards", labels, *data, "--out", out, "--pretrained", classifier,
            *SHORT, *more]  # fmt: skip


def test_from_labels_to_scored_masks(wsssfast, made, tmp_path):
    data, _, _ = made
    (tmp_path / "val.txt").write_text("im1\nim3\n")
    run = tmp_path / "run"
    code, text, err = wsssfast(*train(made, run, "--val-split", tmp_path / "val.txt"))
    assert code == 0, err
    assert "IoU after the last" in text and "best.safetensors" in text
    ids = [(run / f"{name}-ids.txt").read_text().split() for name in ("train", "held-out")]
    assert ids == [["im0", "im2"], ["im1", "im3"]]
    model = load_segmenter(run / "last.safetensors")
    assert model.config.class_names == ("cat", "dog", "cow")
    before = (run / "last.safetensors").read_bytes()
    assert wsssfast(*train(made, run, "--val-split", tmp_path / "val.txt"))[0] == 0
    assert (run / "last.safetensors").read_bytes() == before  # nothing was left to do
    code, _, err = wsssfast(*train(made, run, "--val-split", tmp_path / "val.txt", "--crop", 48))
    assert code == 2 and "crop" in err

    words = ["predict", "--checkpoint", run / "best.safetensors", *data, "--workers", 1]
    masks = tmp_path / "masks"
    code, text, err = wsssfast(
        *words, "--recipe", "paper", "--out", masks, "--png", tmp_path / "png"
    )
    assert (code, "4 masks" in text) == (0, True), err
    told = LabelShards(masks).identity["predicted"]
    assert told["scales"] == [0.5, 0.75, 1.0, 1.25, 1.5] and told["fuse"] == "max"
    assert (told["crf_bilateral_srgb"], told["crf_gaussian_sxy"], told["flip"]) == (5, 4, False)
    assert len(list((tmp_path / "png").glob("*.png"))) == 4
    code, text, err = wsssfast("evaluate", "seg", masks, *data, "--classes", "cat, dog",
                               "--report", tmp_path / "r.html")  # fmt: skip
    assert (code, (tmp_path / "r.html").is_file()) == (0, True), err
    assert "boundary mIoU %" in text
    scores = [
        json.loads(wsssfast("evaluate", "seg", folder, *data, "--json", "-")[1])
        for folder in (masks, tmp_path / "png")
    ]
    assert scores[0] == scores[1] and len(scores[0]["image_miou"]) == 4
    code, _, err = wsssfast("evaluate", "seg", masks, *data, "--classes", "yak")
    assert code == 2 and "found yak" in err
    bare = tmp_path / "bare"
    assert wsssfast(*words, "--labels", "none", "--recipe", "paper", "--out", bare)[0] == 0
    assert bytes_of(tmp_path / "png") == pngs(wsssfast, bare, tmp_path / "again")


def pngs(wsssfast, shards, out):
    assert wsssfast("convert", shards, "--to", "png", "--out", out)[0] == 0
    return bytes_of(out)


def test_full_supervision_and_a_bad_image(wsssfast, made, tmp_path):
    data, classifier, _ = made
    words = ["train-seg", "--true-masks", *data, "--out", tmp_path / "full", "--pretrained",
             classifier, *SHORT, "--confidence", 0.7]  # fmt: skip
    code, _, err = wsssfast(*words)
    assert code == 0, err
    (tmp_path / "data" / "images" / "im2.png").write_bytes(b"nothing")
    code, _, err = wsssfast(
        "predict", "--checkpoint", tmp_path / "full" / "last.safetensors", *data, "--out",
        tmp_path / "masks", "--workers", 1,
    )  # fmt: skip
    assert code == 3 and "unreadable: im2" in err
    assert len(LabelShards(tmp_path / "masks")) == 3


def test_mistakes_take_one_line(wsssfast, made, tmp_path):
    data, classifier, labels = made
    out = tmp_path / "x"
    code, _, err = wsssfast(*train((data, "none", labels), out))
    assert code == 2 and "a classifier that the trunk vit starts from" in err
    code, _, err = wsssfast(*train((data, "timm", labels), out, "--trunk", "resnet38"))
    assert code == 2 and "weights of ResNet38" in err
    code, _, err = wsssfast(*train((data, classifier, tmp_path / "nowhere"), out))
    assert code == 2 and "Expected label shards in" in err
    code, _, err = wsssfast(*train(made, out, "--true-masks"))
    assert code == 2 and "--label-shards or --true-masks, found both" in err
    code, _, err = wsssfast("predict", "--checkpoint", classifier, *data, "--out", out)
    assert code == 2 and "a segmenter checkpoint" in err
    assert err.endswith("kind 'classifier'. Make one with `wsssfast train-seg`.\n")
    code, _, err = wsssfast(
        "predict", "--checkpoint", classifier, *data, "--out", out, "--archive", tmp_path / "a.zip"
    )
    assert code == 2 and "a name that ends in .tgz or .tar.gz" in err
    code, _, err = wsssfast(
        "predict", "--checkpoint", classifier, *data, "--out", out, "--bilateral-srgb", 9
    )
    assert code == 2 and "--bilateral-srgb together with --refine crf" in err
    others = ["--dataset", "synthetic", "--split", "val:4"]
    code, _, err = wsssfast(*train((others, classifier, labels), out))
    assert code == 2 and "label shards of the data set's" in err
    assert err.count("\n") == 1
    save_model(Segmenter(SegmenterConfig(("a",), "vit", tiny_config(("a",)))), tmp_path / "s")
    words = ["predict", "--checkpoint", tmp_path / "s", *data, "--labels", "none", "--out", out]
    code, _, err = wsssfast(*words, "--archive", tmp_path / "r.tgz")
    assert code == 2 and "VOC's 20 classes" in err
    bare = folder_dataset(tmp_path / "bare", SIZES)
    for path in (bare / "masks").iterdir():
        path.unlink()
    (tmp_path / "two.txt").write_text("im0\nim1\n")
    code, _, err = wsssfast(
        *train((["--dataset", "folder", "--data-root", bare], classifier, labels), out),
        "--val-split", tmp_path / "two.txt",
    )  # fmt: skip
    assert code == 2 and "masks of the images that are held out" in err
    assert not out.exists()


def test_labels_that_are_missing_are_told(wsssfast, made, tmp_path):
    """Three shards of which one is not there yet; and image labels are not needed."""
    data, classifier, _ = made
    whole, folder = open_dataset("folder", data[-1]), tmp_path / "three"
    folder.mkdir()
    for n in (0, 2):
        records = [LabelRecord.of(i.id, (), whole.load_mask(i)) for i in whole.items[n : n + 2]]
        write_label_shard(
            folder, n, 3, records, failed={}, identity={"class_names": ["cat", "dog", "cow"]},
            config={}, versions={},
        )  # fmt: skip
    (data[-1] / "labels.csv").unlink()
    words = train((data, classifier, folder), tmp_path / "run", "--labels", "none")
    code, _, err = wsssfast(*words)
    assert code == 3 and "labels-00001-of-00003" in err
    assert load_segmenter(tmp_path / "run" / "last.safetensors")


@pytest.fixture
def voc_masks(tmp_path):
    """Label shards of VOC's classes; which values, the test chooses."""

    def make(values, failed=None):
        folder = tmp_path / f"voc-{len(list(tmp_path.glob('voc-*')))}"
        folder.mkdir()
        rng = np.random.RandomState(0)
        records = [
            LabelRecord.of(i, (), rng.choice(values, (30 + n, 41)).astype(np.uint8))
            for n, i in enumerate(("2008_000006", "2008_000011"))
        ]
        write_label_shard(
            folder, 0, 1, records, failed=failed or {},
            identity={"class_names": list(CLASS_NAMES)}, config={}, versions={},
        )  # fmt: skip
        return folder

    return make


def test_the_archive_of_vocs_server(wsssfast, voc_masks, tmp_path):
    """Its layout and its rules: all images, their sizes, palette files, values 0 to 20."""
    masks, out = voc_masks([0, 1, 20]), tmp_path / "deep" / "results.tgz"
    words = ["convert", masks, "--to", "voc-archive", "--out", out]
    assert wsssfast(*words)[0] == 0
    first = out.read_bytes()
    assert wsssfast(*words)[0] == 0 and out.read_bytes() == first
    shards = LabelShards(masks)
    with tarfile.open(out, "r:gz") as archive:
        names = archive.getnames()
        folder = "results/VOC2012/Segmentation/comp6_test_cls/"
        assert names == [f"{folder}{i}.png" for i in ("2008_000006", "2008_000011")]
        for name, image_id in zip(names, shards.ids, strict=True):
            picture = Image.open(io.BytesIO(archive.extractfile(name).read()))
            assert picture.mode == "P" and picture.getpalette()[3:6] == [128, 0, 0]
            assert (np.asarray(picture) == shards.mask(image_id)).all()
    for folder, told in (
        (voc_masks([0, 255]), "a class for every pixel of 2008_000006, found 255"),
        (voc_masks([0], {"2008_000099": "gone"}), "a mask of every image, found none of 2008_0000"),
    ):
        code, _, err = wsssfast("convert", folder, "--to", "voc-archive", "--out", out)
        assert code == 2 and told in err
        assert out.read_bytes() == first
