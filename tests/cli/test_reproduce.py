"""The paper's pipeline as one command."""

import json
import os
import shlex
import signal
import sys
import time
from threading import Thread

import numpy as np
import pytest
from PIL import Image
from support import random_image

from wsssfast import reproduce
from wsssfast.cli.reproduce import _recipe, _require_options
from wsssfast.data.voc import CLASS_NAMES
from wsssfast.errors import WsssError
from wsssfast.reproduce import Plan, Step, disk_bytes, run_steps

SMALL = """
[train]
arch = "test_vit"
image-size = 32
warmup-epochs = 0
epochs = 1
batch-size = 4
loader-workers = 0
[ablate]
stages = ["original", "final"]
[train-affinity]
crop = 72
epochs = 1
batch-size = 4
loader-workers = 0
[export-labels]
crf-workers = 1
[train-seg]
crop = 32
epochs = 1
batch-size = 4
loader-workers = 0
[predict]
scales = [0.5, 1]
workers = 1
"""


@pytest.fixture
def root(tmp_path):
    """Ten images in VOC's layout: eight to learn from, two to segment."""
    root = tmp_path / "VOC2012"
    for name in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    ids = [f"2007_{n:06d}" for n in range(10)]
    for n, image_id in enumerate(ids):
        random_image(64, 48, n).save(root / "JPEGImages" / f"{image_id}.jpg")
        mask = np.zeros((48, 64), np.uint8)
        mask[8:40, 10:50] = 1 + n % 3
        Image.fromarray(mask).save(root / "SegmentationClassAug" / f"{image_id}.png")
    labels = {image_id: [CLASS_NAMES[n % 3]] for n, image_id in enumerate(ids)}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    for name, part in (("train_aug", ids[:8]), ("train", ids[:4]), ("val", ids[8:])):
        (root / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("\n".join(part) + "\n")
    return root


def words(root, out, *more):
    return ["reproduce", "voc", "--data-root", root, "--labels", root.parent / "labels.json",
            "--out", out, "--pretrained", "none", "--resnet38", "none", "--device", "cpu",
            *more]  # fmt: skip


@pytest.mark.parametrize("what", ["voc", "coco"])
@pytest.mark.parametrize("resnet38", [True, False])
def test_every_step_takes_its_options(tmp_path, what, resnet38):
    weights = tmp_path / "r.pth" if resnet38 else None
    plan = Plan(_recipe(what, None), ("--dataset", what, "--data-root", "d"), what == "coco",
                tmp_path, "timm", weights)  # fmt: skip
    steps = plan.steps()
    _require_options(steps)
    names = [step.name for step in steps]
    wanted = ["train", "ablate", "export-cams", "train-affinity", "export-labels",
              "evaluate labels", "train-seg", "predict", "evaluate seg", "report"]  # fmt: skip
    assert names == [name for name in wanted if (what, name) != ("coco", "ablate")]
    affinity = steps[names.index("train-affinity")].words
    assert affinity[affinity.index("--pretrained") + 1] == str(
        weights or tmp_path / "classifier" / "last.safetensors"
    )
    assert ("--trunk" in affinity) is not resnet38
    assert steps[0].line(8)[:5] == [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=8",
    ]  # fmt: skip
    assert (
        steps[0].told(8).startswith("torchrun --standalone --nproc-per-node=8 -m wsssfast train ")
    )
    assert Step("predict", ("--out", "a b")).told() == "wsssfast predict --out 'a b'"
    assert steps[-1].line(8)[:4] == [sys.executable, "-m", "wsssfast", "report"]


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    codes, ran = {}, []

    def run(line):
        ran.append(line[3])
        return codes.get(line[3], 0)

    monkeypatch.setattr(reproduce, "_run", run)
    steps = [Step(name, ("--x", name)) for name in "abcd"]
    codes["c"] = 4
    assert run_steps(steps, tmp_path, tell=lambda line: None) == 4
    codes.update(c=3)
    assert run_steps(steps, tmp_path, tell=lambda line: None) == 3
    assert ran == ["a", "b", "c", "c", "d"]
    assert run_steps(steps, tmp_path, tell=lambda line: None) == 3
    assert len(ran) == 5
    steps[1] = Step("b", ("--x", "other"))
    codes["d"] = 2
    with pytest.raises(WsssError, match="`wsssfast d` to end well, found exit code 2") as error:
        run_steps(steps, tmp_path, tell=lambda line: None)
    assert error.value.code == 2
    assert ran[5:] == ["b", "c", "d"]


def test_an_end_reaches_the_running_step_once(tmp_path, request):
    code = (
        "import pathlib, signal, sys, time\n"
        "told = []\n"
        "signal.signal(signal.SIGTERM, lambda *_: told.append('T'))\n"
        "signal.signal(signal.SIGINT, lambda *_: told.append('I'))\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "while not told: time.sleep(0.01)\n"
        "time.sleep(0.3)\n"
        "pathlib.Path(sys.argv[1]).write_text(''.join(told))\n"
    )

    def end():
        while not (tmp_path / "told").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    # a shell that starts the tests in the background has them ignore SIGINT
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, former))
    Thread(target=end, daemon=True).start()
    assert reproduce._run([sys.executable, "-c", code, str(tmp_path / "told")]) == 4
    assert (tmp_path / "told").read_text() == "T"
    assert reproduce._run([sys.executable, "-c", "raise SystemExit(3)"]) == 3


def test_disk_is_counted_from_labels_images_and_networks():
    from wsssfast.data import open_dataset

    scenes = open_dataset("synthetic", split="train:4")
    assert disk_bytes(scenes, 3, 10) == 1000 * sum(len(i.labels) for i in scenes) + 7 * 3000 + 200


def test_mistakes_are_told_before_anything_runs(wsssfast, root, tmp_path):
    out = tmp_path / "out"
    cases = {
        "[train]\nepoch = 3": "epoch",
        "[train]\nepochs = 'many'": "many",
        "[trains]\nepochs = 3": "found 'trains'",
        "train-split = 'none'": "none",
        "x": "TOML",
    }
    for text, told in cases.items():
        (tmp_path / "c.toml").write_text(text)
        code, _, err = wsssfast(*words(root, out, "--changes", tmp_path / "c.toml"))
        assert code == 2 and told in err, text
    code, _, err = wsssfast(*words(root, out), "--resnet38", "none.pth")
    assert code == 2 and "ResNet38 at none.pth" in err
    assert not (out / "price.json").exists()


def test_the_price_is_told_alone(wsssfast, root, tmp_path, monkeypatch):
    from wsssfast.bench import pipeline

    asked = []

    def price(options, progress, begin):
        asked.append(options)
        begin(options.stages[0])
        return [pipeline.Price(s, images_per_second=2.0, hours=0.5) for s in options.stages]

    monkeypatch.setattr(pipeline, "price", price)
    (tmp_path / "c.toml").write_text(SMALL)
    code, text, err = wsssfast(
        *words(root, tmp_path / "out", "--price-only", "--changes", tmp_path / "c.toml")
    )
    assert code == 0 and "3.0 hours" in text and "8 images to learn from" in text, err
    (options,) = asked
    assert (options.images, options.test_images, options.size) == (8, 2, (48, 64))
    assert (options.arch, options.trunk, options.classes) == ("test_vit", "vit", 20)
    assert not (tmp_path / "out" / "classifier").exists()
    assert err == "price: train (1 of 6) …\n"
    lines = [line for line in text.splitlines() if line.startswith("wsssfast ")]
    assert text.splitlines()[-10:] == lines
    assert shlex.split(lines[0])[:4] == ["wsssfast", "train", "--dataset", "voc"]
    assert lines[-1].startswith("wsssfast report --paper --measured=price=")


@pytest.mark.slow
def test_the_whole_pipeline(wsssfast, root, tmp_path, monkeypatch):
    from wsssfast.bench import pipeline

    def price(options, progress, begin):
        return [pipeline.Price(s, images_per_second=3.0, hours=0.5) for s in options.stages]

    monkeypatch.setattr(pipeline, "price", price)
    out = tmp_path / "out"
    (tmp_path / "c.toml").write_text(SMALL)
    given = words(root, out, "--changes", tmp_path / "c.toml")
    code, text, err = wsssfast(*given)
    assert code == 0, err
    assert "10 of 10, report" in text
    assert ">3.00<" in "".join((out / "paper.html").read_text().split())
    code, text, _ = wsssfast(*given)
    assert code == 0 and text.count(": done") == 10
