"""Several batches at a time: the same bytes by any number of lanes, and never beyond the memory."""

import threading
import time

import pytest
import torch
from support import bytes_of, folder_dataset, tiny_model

from wsssfast import memory, pipeline
from wsssfast.cam_options import CamOptions
from wsssfast.compute import batch_maps
from wsssfast.data import open_dataset
from wsssfast.export import export_cams
from wsssfast.lanes import lanes

CPU = torch.device("cpu")


@pytest.fixture
def threads():
    """Sets PyTorch's threads, and sets them back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def data(tmp_path):
    sizes = [(40, 32)] * 7 + [(33, 47)] * 4
    return open_dataset("folder", folder_dataset(tmp_path / "data", sizes=sizes))


def test_any_number_of_lanes_makes_the_same_bytes(data, tmp_path, threads):
    for count in (1, 2, 5):
        threads(count)
        export_cams(tiny_model(), data, tmp_path / str(count), CamOptions(), batch_size=2)
    assert bytes_of(tmp_path / "2") == bytes_of(tmp_path / "1")
    assert bytes_of(tmp_path / "5") == bytes_of(tmp_path / "1")


def together(data, out, monkeypatch):
    """How many batches were computed at the same time, at the most."""
    running, most, counting = 0, 0, threading.Lock()

    def watched(*args, **how):
        nonlocal running, most
        with counting:
            running += 1
            most = max(most, running)
        time.sleep(0.05)
        try:
            return batch_maps(*args, **how)
        finally:
            with counting:
                running -= 1

    monkeypatch.setattr(pipeline, "batch_maps", watched)
    export_cams(tiny_model(), data, out, CamOptions(), batch_size=1)
    return most


def test_batches_that_fill_the_memory_are_computed_one_at_a_time(
    data, tmp_path, threads, monkeypatch
):
    threads(3)
    assert together(data, tmp_path / "much", monkeypatch) == 3
    largest = 4 * 4 * ((40 // 8) * (32 // 8)) ** 2 * 2  # memory.most_images, for 20 patches
    monkeypatch.setattr(memory, "usable_memory", lambda device: 2 * largest)
    assert together(data, tmp_path / "little", monkeypatch) == 1


@pytest.mark.parametrize(("count", "wanted"), [(1, 1), (2, 2), (8, 8), (9, 4), (16, 8), (64, 8)])
def test_threads_are_shared_out_among_the_lanes(threads, count, wanted):
    threads(count)
    before = torch.get_num_threads()
    barrier = threading.Barrier(wanted)

    def own():
        barrier.wait(10)  # each in a lane of its own
        return torch.get_num_threads()

    with lanes(CPU) as (submit, ahead):
        assert ahead == 2 * wanted
        each = [future.result() for future in [submit(own) for _ in range(wanted)]]
    assert each == [-(-count // 8)] * wanted
    assert torch.get_num_threads() == before


def test_what_has_not_begun_when_a_run_ends_never_does(threads):
    threads(1)
    begun = threading.Event()
    with pytest.raises(KeyboardInterrupt), lanes(CPU) as (submit, _):
        submit(lambda: begun.set() or time.sleep(0.2))
        never = submit(lambda: 1)
        begun.wait(10)
        raise KeyboardInterrupt
    assert never.cancelled()
