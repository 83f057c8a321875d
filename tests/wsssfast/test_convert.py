"""Dumps of the field: written as its scripts read them, and read back without running them."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from documented import DOCS, IRN, NPY, run_script
from hypothesis import given, settings
from hypothesis import strategies as st
from support import bytes_of, folder_dataset, tiny_model

from wsssfast.cam_options import CamOptions
from wsssfast.convert import from_npy, to_irn, to_npy
from wsssfast.data import open_dataset
from wsssfast.data.images import read_mask
from wsssfast.errors import WsssError
from wsssfast.evaluate import evaluate_cams
from wsssfast.export import export_cams
from wsssfast.shards import CamRecord, open_shards, verify_shards, write_cam_shard

CLASSES = ("cat", "dog", "cow")
STEP = 7.7e-6  # the stated error of quantised maps


def ignore(amount):
    pass


@pytest.fixture
def data(tmp_path):
    return open_dataset("folder", folder_dataset(tmp_path / "data"))


@pytest.fixture
def shards(data, tmp_path):
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


@pytest.mark.parametrize("cut", [0.1, 0.4])
def test_a_twenty_line_script_finds_the_same_labels_and_miou(shards, data, tmp_path, cut):
    assert len(NPY.splitlines()) <= 20
    to_npy(shards, tmp_path / "npy", None, ignore)
    (tmp_path / "out").mkdir()
    masks = tmp_path / "data" / "masks"
    printed = run_script(NPY, tmp_path / "npy", masks, tmp_path / "out", cut, len(CLASSES))
    for image_id in shards:
        found = read_mask(tmp_path / "out" / f"{image_id}.png")
        assert np.array_equal(found, shards.mask(image_id, cut))
    results, _ = evaluate_cams(shards, data, ["final"])
    assert float(printed) == pytest.approx(dict(results["final"]["curve"])[cut], abs=1e-12)


def test_irn_has_keys_and_two_sizes(shards, tmp_path):
    to_irn(shards, tmp_path / "irn", "final", ignore)
    found = as_psa_reads_it(tmp_path / "irn" / "im3.npy")
    labels, maps = shards.cam("im3")
    assert list(found) == ["keys", "cam", "high_res"]
    assert isinstance(found["keys"], torch.Tensor) and isinstance(found["cam"], torch.Tensor)
    assert found["keys"].tolist() == labels.tolist()
    assert found["cam"].dtype == torch.float32
    assert found["cam"].shape == (len(labels), 6, 16)  # of 24 x 64
    assert found["cam"].amax((1, 2)).tolist() == pytest.approx([1] * len(labels), abs=2e-5)
    assert np.array_equal(found["high_res"], maps)


def test_an_irn_script_finds_the_same_labels(shards, tmp_path):
    to_irn(shards, tmp_path / "irn", None, ignore)
    for image_id, size in (("im0", (8, 10)), ("im2", (12, 9))):
        dump, out = tmp_path / "irn" / f"{image_id}.npy", tmp_path / "out.png"
        printed = run_script(IRN, dump, out, 0.05, 0.3)
        assert printed.split() == [str(side) for side in (len(shards.labels(image_id)), *size)]
        found = read_mask(out)
        assert np.array_equal(found, shards.mask(image_id, (0.05, 0.3)))
        assert {0, 255} < set(np.unique(found).tolist())


def test_images_of_no_class_and_of_one_pixel(tmp_path):
    (tmp_path / "cams").mkdir()
    grids = {"none": np.zeros((0, 2, 2), np.float32), "one": np.ones((1, 2, 2), np.float32)}
    records = [CamRecord("none", (7, 9), (), {"final": [grids["none"]]}),
               CamRecord("one", (1, 1), (2,), {"final": [grids["one"]]})]  # fmt: skip
    write_cam_shard(
        tmp_path / "cams", 0, 1, records, failed={}, epsilons={"final": 1e-8}, config={},
        identity={"class_names": list(CLASSES), "stages": ["final"], "scales": [1.0]}, versions={},
    )  # fmt: skip
    shards = open_shards(tmp_path / "cams")
    to_npy(shards, tmp_path / "npy", None, ignore)
    to_irn(shards, tmp_path / "irn", None, ignore)
    assert as_psa_reads_it(tmp_path / "npy" / "none.npy") == {}
    assert as_psa_reads_it(tmp_path / "npy" / "one.npy")[2].tolist() == [[0]]
    assert as_psa_reads_it(tmp_path / "irn" / "none.npy")["cam"].shape == (0, 2, 3)
    assert as_psa_reads_it(tmp_path / "irn" / "one.npy")["cam"].tolist() == [[[0]]]
    failed = from_npy(tmp_path / "npy", tmp_path / "back", CLASSES, ignore)
    assert list(failed) == ["none"] and "size of its image is unknown" in failed["none"]


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
        stored = back.grids(image_id).grids[0]
        assert (np.abs(stored - maps) <= STEP * maps.max((1, 2), keepdims=True)).all()
        rest = 1 - maps.max((1, 2), keepdims=True)  # of the epsilon; the min-max takes it away
        assert (np.abs(found - maps) <= STEP + rest).all()


@st.composite
def dumps(draw):
    """{class: float32 [H, W]}: maps that go from 0 to 1, or are 0 throughout."""
    height, width = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    rng = np.random.RandomState(draw(st.integers(0, 2**32 - 1)))
    maps = {}
    for c in draw(st.sets(st.integers(0, 2), min_size=1)):
        values = rng.rand(height, width).astype(np.float32) ** draw(st.integers(1, 9))
        span = values.max() - values.min()
        maps[c] = (values - values.min()) / (span if span else np.float32(1))
    return maps


@settings(max_examples=40, deadline=None)
@given(dumps())
def test_the_first_round_trip_rounds_and_the_second_is_exact(maps):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "npy0").mkdir()
        np.save(folder / "npy0" / "a.npy", maps)
        for n in range(2):
            assert from_npy(folder / f"npy{n}", folder / f"cams{n}", CLASSES, ignore) == {}
            to_npy(open_shards(folder / f"cams{n}"), folder / f"npy{n + 1}", None, ignore)
        found = as_psa_reads_it(folder / "npy1" / "a.npy")
        assert list(found) == sorted(maps)
        for c, values in maps.items():
            assert np.abs(found[c] - values).max() <= STEP
        assert bytes_of(folder / "npy2", "*") == bytes_of(folder / "npy1", "*")
        assert bytes_of(folder / "cams1", "cams-*") == bytes_of(folder / "cams0", "cams-*")


def test_bad_dumps_are_listed(shards, tmp_path):
    to_npy(shards, tmp_path / "npy", None, ignore)
    np.save(tmp_path / "npy" / "im0.npy", np.zeros(3))
    np.save(tmp_path / "npy" / "im1.npy", {7: np.zeros((2, 2), np.float32)})
    np.save(tmp_path / "npy" / "im2.npy", {0: np.zeros((2, 2)), 1: np.zeros((3, 2))})
    (tmp_path / "npy" / "im9.npy").write_bytes(b"\x93NUMPY")
    failed = from_npy(tmp_path / "npy", tmp_path / "back", shards.class_names, ignore)
    assert sorted(failed) == ["im0", "im1", "im2", "im9"]
    assert open_shards(tmp_path / "back").ids == ("im3",)


def test_dumps_of_irn_are_refused_and_the_page_shows_what_to_do(shards, tmp_path):
    to_irn(shards, tmp_path / "irn", None, ignore)
    with pytest.raises(WsssError, match=r"found one of IRN in .*im0.npy"):
        from_npy(tmp_path / "irn", tmp_path / "back", CLASSES, ignore)
    assert not (tmp_path / "back").exists()
    page = DOCS.read_text().partition("IRN's dumps are refused")[2]
    (tmp_path / "npy").mkdir()
    run_script(page.split("```")[1].strip(), tmp_path / "irn", tmp_path / "npy")
    to_npy(shards, tmp_path / "wanted", None, ignore)
    for image_id in shards:
        found, wanted = (
            as_psa_reads_it(tmp_path / d / f"{image_id}.npy") for d in ("npy", "wanted")
        )
        assert list(found) == list(wanted)
        assert all(np.array_equal(found[c], wanted[c]) for c in wanted)


def test_a_folder_without_dumps_is_refused(tmp_path):
    with pytest.raises(WsssError, match="found none"):
        from_npy(tmp_path, tmp_path / "out", ("a",), ignore)


def test_a_stage_that_is_not_there_leaves_no_folder(shards, tmp_path):
    with pytest.raises(WsssError, match="found 'original'"):
        to_npy(shards, tmp_path / "npy", "original", ignore)
    assert not (tmp_path / "npy").exists()
