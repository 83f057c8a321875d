"""Memory: what is refused before it is tried, and what happens where it runs out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support import bytes_of, folder_dataset, tiny_model

from wsssfast import memory, pipeline
from wsssfast.cam_options import CamOptions
from wsssfast.compute import batch_maps
from wsssfast.data import open_dataset
from wsssfast.errors import WsssError
from wsssfast.export import export_cams
from wsssfast.kernels import STAGES
from wsssfast.shards import open_shards

ALL = CamOptions(stages=STAGES, scales=(1.0, 0.75, 1.25))


@pytest.fixture
def data(tmp_path):
    return open_dataset("folder", folder_dataset(tmp_path / "data"))


def needed_memory(width, height):
    """Of one image and its mirror image at ALL's largest scale, twice: half must do."""
    return 2 * 4 * 4 * 2 * (width * height * 1.25**2 / 64) ** 2


def test_images_too_large_for_the_memory_are_listed_until_there_is_more(
    data, tmp_path, monkeypatch
):
    whole, small, out = tmp_path / "whole", tmp_path / "small", tmp_path / "out"
    export_cams(tiny_model(), data, whole, ALL, batch_size=2)
    monkeypatch.setattr(memory, "usable_memory", lambda device: needed_memory(64, 24))
    assert export_cams(tiny_model(), data, small, ALL, batch_size=2).failed == {}  # one by one
    shards, wanted = open_shards(small), open_shards(whole)
    for image_id in wanted:
        assert np.abs(shards.cam(image_id)[1] - wanted.cam(image_id)[1]).max() <= 5e-5
    monkeypatch.setattr(memory, "usable_memory", lambda device: 100)
    summary = export_cams(tiny_model(), data, out, ALL, batch_size=2)
    assert len(summary.failed) == 4
    assert "64x24 pixels need more than half of the memory" in summary.failed["im3"]
    again = export_cams(tiny_model(), data, out, ALL, batch_size=2)
    assert (again.skipped_shards, again.failed) == (1, summary.failed)
    monkeypatch.undo()
    assert export_cams(tiny_model(), data, out, ALL, batch_size=2).failed == {}
    assert bytes_of(out) == bytes_of(whole)


def test_a_batch_that_finds_no_memory_is_tried_as_halves(tmp_path, monkeypatch):
    data = open_dataset("folder", folder_dataset(tmp_path / "data", sizes=[(40, 32)] * 12))
    tried = []

    def hungry(model, pixels, *rest, **how):
        tried.append(len(pixels))
        if len(pixels) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch_maps(model, pixels, *rest, **how)

    monkeypatch.setattr(pipeline, "batch_maps", hungry)
    summary = export_cams(tiny_model(), data, tmp_path / "out", ALL, batch_size=8)
    assert summary.failed == {} and summary.images == 12
    assert (tried.count(8), tried.count(2)) == (1, 6)
    export_cams(tiny_model(), data, tmp_path / "two", ALL, batch_size=2)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "two")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_an_image_that_finds_no_memory_is_listed(data, tmp_path, monkeypatch, error):
    def hungry(model, pixels, *rest, **how):
        if pixels[0][0].shape[0] == 24:
            raise error
        return batch_maps(model, pixels, *rest, **how)

    monkeypatch.setattr(pipeline, "batch_maps", hungry)
    summary = export_cams(tiny_model(), data, tmp_path / "out", ALL)
    assert summary.failed == {"im3": "not enough memory for 64x24 pixels"}
    assert summary.images == 3
    monkeypatch.undo()
    again = export_cams(tiny_model(), data, tmp_path / "out", ALL)  # there may be more by now
    assert (again.written_shards, again.images, again.failed) == (1, 4, {})


def test_where_no_memory_is_left_the_run_ends_and_marks_nothing_as_done(
    data, tmp_path, monkeypatch
):
    def hungry(*args, **how):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(pipeline, "batch_maps", hungry)
    with pytest.raises(WsssError, match="too little for 3 images in a row"):
        export_cams(tiny_model(), data, tmp_path / "out", ALL)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".wsssfast.lock"]


def test_what_goes_wrong_in_the_network_is_not_taken_for_a_bad_image(data, tmp_path, monkeypatch):
    def broken(*args, **how):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(pipeline, "batch_maps", broken)
    with pytest.raises(RuntimeError, match="do not fit"):
        export_cams(tiny_model(), data, tmp_path / "out", ALL)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".wsssfast.lock"]


def test_memory_is_the_least_limit_of_the_cgroups(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    everything = memory.usable_memory(torch.device("cpu"))
    assert everything > 2**20
    places = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    place = next(p for _, controllers, p in places if not controllers or "memory" in controllers)
    version_1 = any("memory" in controllers.split(",") for _, controllers, _ in places)
    folder = (tmp_path / "memory" if version_1 else tmp_path) / place.lstrip("/")
    folder.mkdir(parents=True, exist_ok=True)
    name = "memory.limit_in_bytes" if version_1 else "memory.max"
    (folder / name).write_text("max\n")
    assert memory.usable_memory(torch.device("cpu")) == everything
    (folder / name).write_text(f"{2**20}\n")
    assert memory.usable_memory(torch.device("cpu")) == 2**20
