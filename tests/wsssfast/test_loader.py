"""Batches made ahead: their order, their limits, and what happens when something goes wrong."""

import threading
import time

import pytest
from PIL import Image
from support import folder_dataset

from wsssfast.data import open_dataset
from wsssfast.errors import WsssError
from wsssfast.loader import load_batches

SIZES = [(8, 8), (16, 8), (8, 8), (16, 8), (8, 8), (16, 8), (8, 8), (4, 4)]


@pytest.fixture
def data(tmp_path):
    return open_dataset("folder", folder_dataset(tmp_path / "data", sizes=SIZES))


def shards_of(data, size):
    items = data.items
    return [(n, items[n * size : (n + 1) * size]) for n in range(-(-len(items) // size))]


def loaded(data, shards, most=lambda size: 2, prepare=lambda image: image.size, workers=2):
    with load_batches(data, shards, most, prepare, workers) as batches:
        return list(batches)


@pytest.mark.parametrize("workers", [1, 3, 16])
def test_batches_are_of_one_size_and_one_shard_in_a_fixed_order(data, workers):
    found = loaded(data, shards_of(data, 5), workers=workers)
    assert [(b.shard, [i.id for i in b.items], b.size) for b in found] == [
        (0, ["im1", "im3"], (16, 8)), (0, ["im0", "im2"], (8, 8)), (0, ["im4"], (8, 8)),
        (0, [], (0, 0)),
        (1, ["im5"], (16, 8)), (1, ["im6"], (8, 8)), (1, ["im7"], (4, 4)),
        (1, [], (0, 0)),
    ]  # fmt: skip
    assert all(batch.pixels == (batch.size,) * len(batch.items) for batch in found)


def test_a_batch_is_cut_into_halves(data):
    (batch, *_) = loaded(data, shards_of(data, 8), most=lambda size: 3)
    first, second = batch.halves()
    assert [i.id for i in first.items + second.items] == [i.id for i in batch.items]
    assert (len(first.items), len(second.pixels)) == (1, 2)


def test_no_more_is_decoded_than_two_batches_ahead(data):
    decoded, asked = [], []

    def shards():
        for number, items in shards_of(data, 2):
            asked.append(number)
            yield number, items

    one = lambda size: 1  # noqa: E731
    with load_batches(data, shards(), one, lambda image: decoded.append(image), 1) as batches:
        next(batches)
        time.sleep(0.3)
        assert len(decoded) <= 3 and asked[-1] <= 1  # one in use, two in flight
        assert sum(len(batch.items) for batch in batches) == 7


def test_what_cannot_be_used_is_a_batch_with_a_reason(data):
    paths = {item.id: item.image for item in data}
    whole = paths["im1"].read_bytes()
    paths["im1"].write_bytes(whole[:60])
    paths["im2"].write_bytes(b"")
    Image.new("RGB", (3, 3)).save(paths["im4"])
    found = loaded(data, shards_of(data, 8), most=lambda size: 0 if size == (16, 8) else 2)
    reasons = {batch.items[0].id: batch.error for batch in found if batch.error}
    assert sorted(reasons) == ["im1", "im2", "im3", "im5"]
    assert reasons["im3"].startswith("16x8 pixels need more than half of the memory")
    assert {i.id for b in found for i in b.items} == {item.id for item in data}


def test_an_image_that_changed_since_its_header_was_read_is_told(data, monkeypatch):
    object.__setattr__(data, "image_size", lambda item: (9, 9))
    found = loaded(data, shards_of(data, 8))
    assert len(found) == 9 and "while its header says (9, 9)" in found[0].error


def test_errors_of_the_shards_and_of_the_work_arrive_where_the_batches_are_used(data):
    def shards():
        yield 0, data.items
        raise WsssError("the folder is gone")

    with pytest.raises(WsssError, match="folder is gone"):
        loaded(data, shards())

    def broken(image):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loaded(data, shards_of(data, 8), prepare=broken)


def test_leaving_early_ends_all_threads(data):
    before = threading.active_count()
    with load_batches(data, shards_of(data, 1), lambda size: 1, lambda i: i, 3) as batches:
        next(batches)
    assert threading.active_count() == before
