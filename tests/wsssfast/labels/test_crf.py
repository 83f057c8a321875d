"""Labels refined by a CRF: from CAM shards and from images, in processes, with bad files."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from PIL import Image
from support import bytes_of, folder_dataset, tiny_model

from wsssfast.cam_options import CamOptions
from wsssfast.data import open_dataset
from wsssfast.errors import WORKER_FAILED, WsssError
from wsssfast.export import export_cams
from wsssfast.labels.maker import LabelMaker, Maps
from wsssfast.labels.makers import makers
from wsssfast.labels.options import LabelOptions
from wsssfast.labels.rules import pseudo_labels
from wsssfast.labels.run import export_labels, export_labels_of_images
from wsssfast.models.checkpoint import save_model
from wsssfast.shards import CamShards, LabelShards
from wsssfast.shards.run import Filling

CRF = LabelOptions("final", (0.3, 0.5), refine="crf")
SIZES = ((40, 32), (40, 32), (33, 47), (1, 50), (64, 24))


@pytest.fixture
def dataset(tmp_path):
    return open_dataset("folder", folder_dataset(tmp_path / "data", SIZES))


@pytest.fixture
def cams(tmp_path, dataset):
    export_cams(tiny_model(), dataset, tmp_path / "cams", CamOptions(), shard_size=2)
    return CamShards(tmp_path / "cams")


def test_masks_are_those_of_each_image_alone(cams, dataset, tmp_path):
    summary = export_labels(cams, tmp_path / "out", CRF, dataset)
    assert (summary.images, summary.written_shards, summary.failed) == (5, 3, {})
    shards = LabelShards(tmp_path / "out")
    for image_id in cams:
        labels, maps = cams.cam(image_id)
        image = np.array(dataset.load_image(dataset.by_id[image_id]))
        (wanted,) = pseudo_labels([torch.from_numpy(maps)], [labels], [image], CRF)
        assert np.array_equal(shards.mask(image_id), wanted)
        assert np.array_equal(shards.labels(image_id), labels)
    assert shards.identity["crf_bilateral_sxy"] == 80


def test_from_images_come_the_same_masks_and_the_same_identity(cams, dataset, tmp_path):
    export_labels(cams, tmp_path / "stored", CRF, dataset)
    model = tiny_model()
    told = []
    summary = export_labels_of_images(
        model, dataset, tmp_path / "straight", CamOptions(), CRF, shard_size=2,
        filling=Filling(watch=lambda event, facts: told.append(event)),
    )  # fmt: skip
    assert (summary.images, summary.written_shards) == (5, 3)
    assert (told[0], told[-1], told.count("shard")) == ("begin", "end", 3)
    assert bytes_of(tmp_path / "stored", "*.h5") == bytes_of(tmp_path / "straight", "*.h5")
    stored, straight = LabelShards(tmp_path / "stored"), LabelShards(tmp_path / "straight")
    assert stored.identity == straight.identity
    (tmp_path / "straight" / "labels-00001-of-00003.json").unlink()
    again = export_labels_of_images(
        model, dataset, tmp_path / "straight", CamOptions(), CRF, shard_size=2
    )
    assert (again.skipped_shards, again.written_shards) == (2, 1)
    with pytest.raises(WsssError, match="a shard size of at least 1"):
        export_labels_of_images(model, dataset, tmp_path / "x", CamOptions(), CRF, shard_size=-1)
    with pytest.raises(WsssError, match="the one stage final"):
        export_labels_of_images(
            model, dataset, tmp_path / "x", CamOptions(stages=("original",)), CRF
        )


def test_processes_give_the_same_bytes_and_list_the_same_bad_images(cams, dataset, tmp_path):
    dataset.by_id["im1"].image.write_bytes(b"no image")
    Image.new("RGB", (9, 9)).save(dataset.by_id["im4"].image)
    for workers in (1, 2):
        out = tmp_path / str(workers)
        summary = export_labels(cams, out, CRF, dataset, crf_workers=workers)
        assert summary.failed.keys() == {"im1", "im4"}
        assert "its CAM was made of 64x24" in summary.failed["im4"]
        assert summary.images == 3
    assert bytes_of(tmp_path / "1") == bytes_of(tmp_path / "2")
    again = export_labels(cams, tmp_path / "1", CRF, dataset)
    assert again.skipped_shards == 3
    folder_dataset(tmp_path / "good", SIZES)
    (tmp_path / "good" / "images" / "im1.png").rename(dataset.by_id["im1"].image)
    mended = export_labels(cams, tmp_path / "1", CRF, dataset)
    assert (mended.skipped_shards, mended.written_shards) == (2, 1)
    assert mended.failed.keys() == {"im4"}


def test_a_killed_process_ends_the_run_with_one_line_and_what_is_done_stays(tmp_path):
    dataset = open_dataset("folder", folder_dataset(tmp_path / "data", SIZES * 8))
    export_cams(tiny_model(), dataset, tmp_path / "cams", CamOptions(), shard_size=2)
    cams, done = CamShards(tmp_path / "cams"), []

    def kill(event, facts):
        if event == "shard":
            done.append(facts)  # others may be on their way
            multiprocessing.active_children()[0].kill()  # the others live on

    with pytest.raises(WsssError, match="found one killed") as caught:
        export_labels(
            cams, tmp_path / "out", CRF, dataset, crf_workers=2, filling=Filling(watch=kill)
        )
    assert caught.value.code == WORKER_FAILED
    summary = export_labels(cams, tmp_path / "out", CRF, dataset)
    assert (summary.skipped_shards, summary.images) == (len(done), 40)
    assert 1 <= len(done) < 20


def test_the_images_must_be_those_of_the_cams(cams, dataset, tmp_path):
    with pytest.raises(WsssError, match=r"made from \(the folder data set.*found no data set"):
        export_labels(cams, tmp_path / "out", CRF)
    other = open_dataset("folder", folder_dataset(tmp_path / "other", SIZES[:3]))
    with pytest.raises(WsssError, match="found other images or labels"):
        export_labels(cams, tmp_path / "out", CRF, other)
    with pytest.raises(WsssError, match="The CRF cannot run: expected backend auto"):
        export_labels(cams, tmp_path / "out", CRF, dataset, backend="numpy")
    with pytest.raises(WsssError, match="one or more on the CPU, found 2 on cuda"):
        export_labels(cams, tmp_path / "out", CRF, dataset, device="cuda", crf_workers=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("straight", [False, True])
def test_an_image_too_large_for_memory_is_listed_until_there_is_more(
    cams, dataset, tmp_path, monkeypatch, straight
):
    def export():
        if straight:
            return export_labels_of_images(
                tiny_model(), dataset, tmp_path / "out", CamOptions(), CRF, shard_size=2
            )
        return export_labels(cams, tmp_path / "out", CRF, dataset)

    monkeypatch.setattr("wsssfast.labels.maker.usable_memory", lambda device: 1_000_000)
    summary = export()
    assert summary.failed.keys() == {"im0", "im1", "im2", "im4"}
    assert "more than half of the memory to be refined" in summary.failed["im0"]
    assert export().written_shards == 0
    monkeypatch.undo()
    assert (export().written_shards, export().failed) == (3, {})


def test_maps_without_memory_together_are_tried_alone(dataset, monkeypatch):
    calls = []

    def scarce(cams, *others, **options):
        calls.append(len(cams))
        if len(cams) > 1 or cams[0].shape[-1] == 33:
            raise torch.OutOfMemoryError("out of memory")
        return pseudo_labels(cams, *others, **options)

    monkeypatch.setattr("wsssfast.labels.maker.pseudo_labels", scarce)
    maker = LabelMaker(CRF, dataset)
    maps = [
        Maps(f"im{n}", SIZES[n][::-1], (0,), [np.ones((1, 2, 2), np.float32)], 1e-8)
        for n in (0, 2, 4)
    ]
    made = maker(maps)
    assert calls == [3, 1, 1, 1]
    assert made[1] == "not enough memory for 33x47 pixels"
    assert (made[0].id, made[2].id) == ("im0", "im4")
    maker = LabelMaker(CRF, dataset, device="cuda")
    assert [len(batch) for batch in maker.batches(maps)] == [3]
    monkeypatch.setattr("wsssfast.labels.maker._BATCH_PIXELS", 40 * 32 + 33 * 47)
    assert [len(batch) for batch in maker.batches(maps)] == [2, 1]


def test_interrupted_processes_end(dataset, tmp_path):
    """SIGTERM to the whole group, as a scheduler sends it."""
    save_model(tiny_model(), tmp_path / "model.safetensors")
    words = [sys.executable, "-m", "wsssfast", "export-labels", "--checkpoint",
             tmp_path / "model.safetensors", "--dataset", "folder", "--data-root",
             tmp_path / "data", "--background", "0.4", "--refine", "crf", "--crf-iterations",
             "20000", "--crf-workers", "2", "--out", tmp_path / "out", "--log",
             tmp_path / "log.jsonl"]  # fmt: skip
    run = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    log = tmp_path / "log.jsonl"
    for _ in range(600):
        if log.exists() and '"begin"' in log.read_text():
            break
        time.sleep(0.1)
    time.sleep(1)
    os.killpg(run.pid, signal.SIGTERM)
    told = run.communicate(timeout=60)[1]
    assert (run.returncode, "Traceback" in told) == (4, False), told
    assert json.loads(log.read_text().splitlines()[0])["crf_workers"] == 2
    for _ in range(50):  # the last to go tracks the others' resources
        if not alive(run.pid):
            break
        time.sleep(0.2)
    assert not alive(run.pid)


def alive(group):
    """Processes of a group that have not ended."""
    fields = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields.append(stat.read_text().rpartition(")")[2].split())
    return [one for one in fields if int(one[2]) == group and one[0] not in "ZX"]


def test_label_makers_in_this_process_keep_the_order(dataset):
    maps = [Maps(f"im{n}", SIZES[n][::-1], (), [], 1e-8) for n in range(5)]
    with makers(LabelMaker(CRF, dataset), 1, Event()) as make:
        assert [image_id for image_id, _ in make(maps)] == [f"im{n}" for n in range(5)]


def test_a_process_killed_after_the_last_image_holds_nobody_up(dataset):
    maps = [Maps(f"im{n}", SIZES[n][::-1], (), [], 1e-8) for n in range(5)]
    with makers(LabelMaker(CRF, dataset), 2, Event()) as make:
        assert len(list(make(maps))) == 5
        own = multiprocessing.active_children()
        own[0].kill()
        time.sleep(0.5)  # the pool sees it
    for process in own:
        process.join(10)
    assert not any(process.is_alive() for process in own)
