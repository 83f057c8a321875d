"""Dumps of the field: written as its scripts read them, and read back without running them."""

import numpy as np
import pytest
from support import folder_dataset, tiny_model

from wsssfast.cam_options import CamOptions
from wsssfast.convert import from_npy, to_irn, to_npy
from wsssfast.data import open_dataset
from wsssfast.errors import WsssError
from wsssfast.export import export_cams
from wsssfast.shards import open_shards, verify_shards


def ignore(amount):
    pass


@pytest.fixture
def shards(tmp_path):
    data = open_dataset("folder", folder_dataset(tmp_path / "data"))
    export_cams(tiny_model(), data, tmp_path / "cams", CamOptions())
    return open_shards(tmp_path / "cams")


def as_psa_reads_it(path):
    return np.load(path, **{"allow_pickle": True}).item()  # our own file


def test_npy_is_what_psa_reads(shards, tmp_path):
    assert to_npy(shards, tmp_path / "npy", None, ignore) == 4
    assert sorted(p.name for p in (tmp_path / "npy").iterdir()) == [f"im{n}.npy" for n in range(4)]
    for image_id in shards:
        found = as_psa_reads_it(tmp_path / "npy" / f"{image_id}.npy")
        labels, maps = shards.cam(image_id)
        assert list(found) == labels.tolist()
        for k, label in enumerate(labels.tolist()):
            assert found[label].dtype == np.float32
            assert np.array_equal(found[label], maps[k])


def test_irn_has_keys_and_two_sizes(shards, tmp_path):
    to_irn(shards, tmp_path / "irn", "final", ignore)
    found = as_psa_reads_it(tmp_path / "irn" / "im3.npy")
    labels, maps = shards.cam("im3")
    assert found["keys"].tolist() == labels.tolist()
    assert found["cam"].shape == (len(labels), 6, 16)  # of 24 x 64
    assert np.array_equal(found["high_res"], maps)


def test_npy_comes_back(shards, tmp_path):
    to_npy(shards, tmp_path / "npy", None, ignore)
    failed = from_npy(tmp_path / "npy", tmp_path / "back", shards.class_names, ignore, shard_size=3)
    assert failed == {}
    back = open_shards(tmp_path / "back")
    assert back.ids == shards.ids
    assert not verify_shards(tmp_path / "back").problems
    for image_id in shards:
        labels, maps = shards.cam(image_id)
        found_labels, found = back.cam(image_id)
        assert found_labels.tolist() == labels.tolist()
        assert np.abs(found - maps).max() <= 1e-5


def test_bad_dumps_are_listed(shards, tmp_path):
    to_npy(shards, tmp_path / "npy", None, ignore)
    np.save(tmp_path / "npy" / "im0.npy", np.zeros(3))
    np.save(tmp_path / "npy" / "im1.npy", {7: np.zeros((2, 2), np.float32)})
    np.save(tmp_path / "npy" / "im2.npy", {0: np.zeros((2, 2)), 1: np.zeros((3, 2))})
    (tmp_path / "npy" / "im9.npy").write_bytes(b"\x93NUMPY")
    failed = from_npy(tmp_path / "npy", tmp_path / "back", shards.class_names, ignore)
    assert sorted(failed) == ["im0", "im1", "im2", "im9"]
    assert open_shards(tmp_path / "back").ids == ("im3",)


def test_a_folder_without_dumps_is_refused(tmp_path):
    with pytest.raises(WsssError, match="found none"):
        from_npy(tmp_path, tmp_path / "out", ("a",), ignore)
