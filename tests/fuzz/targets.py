"""What is read: samples of every kind of file, and the reader of each."""

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from mutate import bytes_of, json_of, shard_of
from pycocotools import mask as coco_mask
from support import as_labels, folder_dataset, tiny_model

from wsssfast.ablation import ablate, read_ablation, read_ablation_files, settings_of
from wsssfast.cam_options import CamOptions
from wsssfast.cli.export import export_cams as export_cams_command
from wsssfast.cli.options import _read_values
from wsssfast.cli.reproduce import _recipe
from wsssfast.convert import from_npy, to_npy
from wsssfast.convert_labels import to_png
from wsssfast.data import open_dataset
from wsssfast.data.labels_file import read_labels
from wsssfast.errors import BadFile, WsssError
from wsssfast.export import export_cams
from wsssfast.kernels.launch import remember, tuned
from wsssfast.models.affinity_weights import published_state
from wsssfast.models.checkpoint import (
    load_affinity,
    load_model,
    load_segmenter,
    read_state_dict,
    save_model,
)
from wsssfast.models.segmenter import Segmenter, SegmenterConfig
from wsssfast.report.paper import read_measured, write_paper_report
from wsssfast.report.scores import parse_scores, read_scores, sweep_rows
from wsssfast.report.training import training_charts
from wsssfast.shards import open_shards, verify_shards
from wsssfast.training.logs import Logs
from wsssfast.training.starts import from_classifier
from wsssfast.training.state import Progress, load_state, save_state

NAMES = ("cat", "dog", "cow")
Change = Callable[[Path, random.Random], None]


@dataclass(frozen=True)
class Target:
    """A kind of input.

    Attributes:
        make: writes a whole sample into an empty folder.
        change: breaks it.
        read: reads it as the package does; what it writes goes to the folder `out` beside.
    """

    make: Callable[[Path], object]
    change: Change
    read: Callable[[Path], object]


def one_file(break_bytes: Callable[[bytes, random.Random], bytes]) -> Change:
    """Break one of the files, whichever comes."""

    def change(folder: Path, chance: random.Random) -> None:
        path = chance.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
        broken = json_of if path.suffix == ".json" else break_bytes
        path.write_bytes(broken(path.read_bytes(), chance))

    return change


def each(*readers: Callable[[], object]) -> None:
    """Call all; the first refusal of any is raised after the last."""
    refusals = []
    for read in readers:
        try:
            read()
        except (BadFile, WsssError) as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]


def shards(folder: Path) -> None:
    """CAM shards and what is made of them."""
    found = open_shards(folder)
    for image_id in found:
        found.check(image_id)
        found.labels(image_id)
        found.cam(image_id)
    verify_shards(folder)
    to_npy(found, folder.parent / "out", None, lambda n: None)


def label_shards(folder: Path) -> None:
    """Label shards, and PNG files of them."""
    found = open_shards(folder)
    for image_id in found:
        found.mask(image_id)
    verify_shards(folder)
    to_png(found, folder.parent / "out", lambda n: None)


def make_cams(folder: Path) -> None:
    """CAM shards of four images in two shards."""
    root = folder_dataset(folder.parent / "data")
    dataset = open_dataset("folder", root)
    export_cams(tiny_model(), dataset, folder, CamOptions(scales=(1.0, 0.5)), shard_size=2)
    for lock in folder.glob(".*"):
        lock.unlink()


def make_labels(folder: Path) -> None:
    """Label shards of four images."""
    folder.rmdir()
    as_labels(folder, open_dataset("folder", folder_dataset(folder.parent / "data")))


def make_scores(folder: Path) -> None:
    """Score shards of two settings."""
    dataset = open_dataset("folder", folder_dataset(folder.parent / "data"))
    settings = settings_of(CamOptions(), stages=["original", "final"], propagations=["gather"],
                           related_by=["tokens"])  # fmt: skip
    ablate(tiny_model(), dataset, folder, settings, CamOptions(), shard_size=2)
    found = {**read_ablation(folder).to_json(), "dataset": "voc", "split": "val"}
    (folder.parent / "ablation.json").write_text(json.dumps(found))
    for lock in folder.glob(".*"):
        lock.unlink()


def make_ablation(folder: Path) -> None:
    """The JSON of an ablation."""
    scores = folder.parent / "scores"
    scores.mkdir()
    make_scores(scores)
    shutil.move(folder.parent / "ablation.json", folder / "ablation.json")


def ablation_json(folder: Path) -> None:
    """JSON that reports read."""
    path = folder / "ablation.json"
    each(lambda: read_ablation_files([path]), lambda: read_measured({"ablation": path}))


def make_label_files(folder: Path) -> None:
    """Labels in the three formats."""
    (folder / "a.csv").write_text("image,labels\nim0.png,cat;dog\nim1.png,\n")
    (folder / "a.json").write_text(json.dumps({"im0": ["cat", 1], "im1": []}))
    np.save(folder / "a.npy", {"im0": np.array([1.0, 0, 1]), "im1": np.zeros(3)}, allow_pickle=True)


def label_files(folder: Path) -> None:
    """Each of them."""
    for name in ("a.csv", "a.json", "a.npy"):
        read_labels(folder / name, NAMES)


def every_image(folder: Path, kind: str, split: str | None = None) -> None:
    """Open a data set, read all images, sizes and masks."""
    dataset = open_dataset(kind, folder, split)
    readers = (dataset.load_image, dataset.load_mask, dataset.image_size)
    each(*(partial(read, item) for item in dataset for read in readers))


def make_folder(folder: Path) -> None:
    """A folder data set."""
    folder.rmdir()
    folder_dataset(folder)


def make_coco(folder: Path) -> None:
    """Instances of two images: polygons, a crowd and a compressed mask."""
    source = folder_dataset(folder.parent / "data")
    images = folder / "train2017"
    images.mkdir(parents=True)
    shutil.copy(source / "images" / "im0.png", images / "000000000001.jpg")
    shutil.copy(source / "images" / "im1.png", images / "000000000002.jpg")
    corner = np.zeros((32, 40), np.uint8, order="F")
    corner[:4, :5] = 1
    packed = coco_mask.encode(corner)
    found = {
        "images": [{"id": n, "file_name": f"{n:012}.jpg", "width": 40, "height": 32}
                   for n in (1, 2)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 90, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 90, "iscrowd": 0, "area": 100,
             "bbox": [1, 1, 10, 10], "segmentation": [[1, 1, 11, 1, 11, 11, 1, 11]]},
            {"id": 2, "image_id": 1, "category_id": 1, "iscrowd": 1, "area": 20,
             "bbox": [0, 0, 5, 4], "segmentation": {"size": [32, 40], "counts": [0, 20, 1260]}},
            {"id": 3, "image_id": 2, "category_id": 1, "iscrowd": 0, "area": 20,
             "bbox": [0, 0, 5, 4], "segmentation": {**packed, "counts": packed["counts"].decode()}},
        ],
    }  # fmt: skip
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(found))


def make_voc(folder: Path) -> None:
    """A VOC folder of four images: lists, annotations and masks."""
    source = folder_dataset(folder.parent / "data", extension="jpg")
    shutil.move(source / "images", folder / "JPEGImages")
    shutil.move(source / "masks", folder / "SegmentationClass")
    ids = sorted(path.stem for path in (folder / "JPEGImages").iterdir())
    lists, told = folder / "ImageSets" / "Segmentation", folder / "Annotations"
    lists.mkdir(parents=True)
    told.mkdir()
    (lists / "train.txt").write_text("\n".join(ids) + "\n")
    for image_id in ids:
        objects = "".join(f"<object><name>{name}</name></object>" for name in NAMES[:2])
        (told / f"{image_id}.xml").write_text(
            f'<?xml version="1.0" encoding="UTF-8"?>\n<annotation>{objects}</annotation>'
        )


def make_settings(folder: Path) -> None:
    """What steers a run: options, changes of a recipe, tuned launches, and a run's log."""
    (folder / "options.toml").write_text(
        'scales = [1.0, 0.5]\nprecision = "bf16"\nbatch-size = 4\nflip = true\nalpha = 0.5\n'
    )
    (folder / "changes.toml").write_text('val-split = "val"\n[train]\nepochs = 3\n')
    cache = folder / "wsssfast"
    cache.mkdir()
    (cache / "launch.json").write_text(json.dumps({"GPU": {"mean": [{"num_warps": 4}]}}))
    lines = [{"step": 1, "loss": 0.5, "rate": 1e-4, "images_per_second": 9.0},
             {"step": 2, "scores": {"mAP": 0.5}}]  # fmt: skip
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def change_settings(folder: Path, chance: random.Random) -> None:
    """Bytes of one, or a JSON value of a line of the log."""
    path = chance.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
    if path.suffix == ".jsonl" and chance.random() < 0.7:
        lines = path.read_bytes().splitlines()
        lines[0] = json_of(lines[0], chance)
        path.write_bytes(b"\n".join(lines))
    else:
        one_file(bytes_of)(path.parent, chance)


def settings(folder: Path) -> None:
    """Each as its command does."""
    os.environ["XDG_CACHE_HOME"] = str(folder)
    tuned.cache_clear()
    tuned("GPU", "mean")
    remember("GPU", "mean", [{"num_warps": 8}])
    Logs(folder, step=2).close()
    context = click.Context(export_cams_command)
    each(
        lambda: training_charts(folder),
        lambda: _read_values(context, folder / "options.toml"),
        lambda: _recipe("voc", folder / "changes.toml"),
    )


def make_figures(folder: Path) -> None:
    """What `evaluate cams`, `evaluate seg` and `price` write, and reports read."""
    scores = {"miou": 0.5, "threshold": 0.2, "fp": 0.25, "fn": 0.25, "images": 1464,
              "per_class": {"background": 0.75, "cat": 0.25}, "absent_classes": ["cow", "dog"],
              "curve": [[0.1, 0.4], [0.2, 0.5], [0.3, 0.4]]}  # fmt: skip
    stage = {"macs": 5, "parameters": 6, "images_per_second": 2.5, "hours": 3.5, "memory": 7}
    figures = {
        "cams": {"stages": {"original": scores, "final": scores}},
        "seg": {"miou": 0.5, "dataset": "voc", "split": "val", "images": 1449},
        "price": {"device": "CPU", "options": {"arch": "deit_small", "images": 10582},
                  "stages": [{"stage": name, **stage} for name in ("train", "export-cams")]},
    }  # fmt: skip
    for name, found in figures.items():
        (folder / f"{name}.json").write_text(json.dumps(found))


def figures(folder: Path) -> None:
    """Each by its report."""
    each(
        lambda: sweep_rows(parse_scores(read_scores(folder / "cams.json"), NAMES)),
        lambda: write_paper_report(
            folder.parent / "out" / "paper.html",
            read_measured({name: folder / f"{name}.json" for name in ("seg", "price")}),
        ),
    )


def make_checkpoints(folder: Path) -> None:
    """Our own classifier and segmenter, and a public layout as a pickle."""
    model = tiny_model()
    save_model(model, folder / "own.safetensors")
    about, start = from_classifier(model)
    segmenter = Segmenter(SegmenterConfig(NAMES, **about))
    start(segmenter.net.core)
    save_model(segmenter, folder / "segmenter.safetensors")
    torch.save({"model": model.state_dict()}, folder / "public.pth")
    torch.save(model.state_dict(), folder / "old.pth", _use_new_zipfile_serialization=False)


def checkpoints(folder: Path) -> None:
    """Every file by every reader."""
    refusals, opened = [], 0
    for path in sorted(folder.iterdir()):
        for load in (load_model, load_segmenter, load_affinity, read_state_dict, published_state):
            try:
                load(path)
                opened += 1
            except Exception as error:
                if type(error).__name__ != "WsssError":
                    raise
                refusals.append(error)
    if opened < 8:  # what a whole sample opens
        raise refusals[0]


def make_dumps(folder: Path) -> None:
    """MCTformer's CAM dumps."""
    for n in range(3):
        maps = {0: np.random.RandomState(n).rand(8, 9).astype(np.float32), 2: np.ones((8, 9))}
        np.save(folder / f"im{n}.npy", maps, allow_pickle=True)


def dumps(folder: Path) -> None:
    """Into shards."""
    failed = from_npy(folder, folder.parent / "out", NAMES, lambda n: None)
    if failed:
        raise BadFile(next(iter(failed.values())))


def _run() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    return model, optimiser


def make_state(folder: Path) -> None:
    """The state of a training run."""
    save_state(folder, *_run(), Progress(step=3, best=(0.5, 1)), {"seed": 0})


def state(folder: Path) -> None:
    """Continued."""
    load_state(folder, *_run(), {"seed": 0})


TARGETS = {
    "CAM shards": Target(make_cams, shard_of, shards),
    "label shards": Target(make_labels, shard_of, label_shards),
    "score shards": Target(make_scores, shard_of, read_ablation),
    "ablation JSON": Target(make_ablation, one_file(json_of), ablation_json),
    "label files": Target(make_label_files, one_file(bytes_of), label_files),
    "folder": Target(make_folder, one_file(bytes_of), lambda f: every_image(f, "folder")),
    "COCO": Target(make_coco, one_file(bytes_of), lambda f: every_image(f, "coco", "train2017")),
    "VOC": Target(make_voc, one_file(bytes_of), lambda f: every_image(f, "voc", "train")),
    "settings": Target(make_settings, change_settings, settings),
    "figures": Target(make_figures, one_file(json_of), figures),
    "checkpoints": Target(make_checkpoints, one_file(bytes_of), checkpoints),
    "CAM dumps": Target(make_dumps, one_file(bytes_of), dumps),
    "training state": Target(make_state, one_file(bytes_of), state),
}
