"""The store: quantisation, reading, checksums, and files that were tampered with."""

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from tampering import flips, not_plain_data, replace, reseal, reseal_sidecar

from wsssfast.errors import BadFile, WsssError
from wsssfast.shards import CamRecord, CamShards, open_shards, verify_shards, write_cam_shard
from wsssfast.shards.safe_h5 import get_text
from wsssfast.shards.writer import quantise

IDENTITY = {
    "class_names": ["cat", "dog", "cow"], "stages": ["original", "final"], "scales": [1.0, 0.5],
    "propagation": "gather",
}  # fmt: skip
DOCS = Path(__file__).resolve().parents[2] / "docs" / "shards.md"


def record(name, labels, size=(30, 41), seed=0):
    rng = np.random.RandomState(seed)
    grids = {
        stage: [
            (rng.rand(len(labels), h, w) * 10.0 ** rng.randint(-6, 6)).astype(np.float32)
            for h, w in ((3, 5), (1, 2))
        ]
        for stage in IDENTITY["stages"]
    }
    return CamRecord(name, size, labels, grids)


def write(folder, index, count, records, failed=None, identity=None):
    folder.mkdir(exist_ok=True)
    return write_cam_shard(
        folder, index, count, records, failed=failed or {}, identity=identity or IDENTITY,
        epsilons={"original": 1e-8, "final": 1e-9}, config={"a": 1}, versions={"b": "2"},
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "s", 0, 2, [record("a", (0, 2), seed=1), record("b", (), seed=2)])
    write(tmp_path / "s", 1, 2, [record("ünï", (1,), (1, 1), seed=3)], {"x": "truncated"})
    return tmp_path / "s"


def test_quantisation_errs_by_half_a_step_at_most():
    rng = np.random.RandomState(0)
    for values in (rng.rand(50, 50), rng.rand(9) * 1e-12, np.ones((2, 2)), rng.rand(7) ** 20):
        values = values.astype(np.float32)
        steps, size = quantise(values)
        error = np.abs(steps * np.float64(size) - values)
        assert error.max() <= 0.5001 * values.max() / 65535
    steps, size = quantise(np.zeros((3, 3), np.float32))
    assert (steps.max(), size) == (0, 0)


def test_reading_gives_back_what_was_written(folder):
    shards = open_shards(folder)
    assert shards.ids == ("a", "b", "ünï")
    assert shards.failed == {"x": "truncated"}
    assert shards.missing_shards == []
    assert shards.class_names == ("cat", "dog", "cow")
    for name, labels, size, seed in (
        ("a", (0, 2), (30, 41), 1), ("b", (), (30, 41), 2), ("ünï", (1,), (1, 1), 3),
    ):  # fmt: skip
        wanted = record(name, labels, size, seed)
        for stage, epsilon in (("original", 1e-8), ("final", 1e-9)):
            found = shards.grids(name, stage)
            assert found.labels.tolist() == list(labels)
            assert found.image_size == size
            assert found.epsilon == epsilon
            for a, b in zip(found.grids, wanted.grids[stage], strict=True):
                assert a.shape == b.shape
                assert np.abs(a - b).max(initial=0) <= 1e-5 * b.max(initial=1e-30)
    assert shards.cam("b")[1].shape == (0, 30, 41)
    assert shards.mask("b", 0.5).tolist() == np.zeros((30, 41)).tolist()


def test_masks_give_ties_to_background(folder):
    shards = open_shards(folder)
    labels, maps = shards.cam("a")
    threshold = float(maps.max(0)[10, 10])
    mask = shards.mask("a", threshold)
    assert mask[10, 10] == 0
    assert (
        shards.mask("a", np.nextafter(np.float32(threshold), np.float32(0)))[10, 10] in labels + 1
    )
    assert set(np.unique(mask)) <= {0, 1, 3}


def test_the_documented_reader_reads_shards_without_the_package(folder):
    code = re.search(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL).group(1)
    assert "wsssfast" not in code
    namespace = {}
    exec(code, namespace)  # our own documentation
    shards = open_shards(folder)
    for name, shard in (("a", 0), ("b", 0), ("ünï", 1)):
        for stage in ("original", "final"):
            labels, maps = namespace["cam"](folder / f"cams-{shard:05d}-of-00002.h5", name, stage)
            wanted_labels, wanted = shards.cam(name, stage)
            assert labels.tolist() == wanted_labels.tolist()
            assert np.abs(maps.reshape(wanted.shape) - wanted).max(initial=0) <= 1e-5


def test_the_file_says_what_it_is(folder):
    with h5py.File(folder / "cams-00000-of-00002.h5") as file:
        assert (file.attrs["format"], file.attrs["version"]) == (b"wsssfast.cams", 1)
    sidecar = json.loads((folder / "cams-00000-of-00002.json").read_text())
    assert (sidecar["format"], sidecar["version"]) == ("wsssfast.cams", 1)


def test_writing_twice_gives_the_same_bytes(folder, tmp_path):
    write(tmp_path / "t", 0, 2, [record("a", (0, 2), seed=1), record("b", (), seed=2)])
    for name in ("cams-00000-of-00002.h5", "cams-00000-of-00002.json"):
        assert (tmp_path / "t" / name).read_bytes() == (folder / name).read_bytes()


def test_maps_that_are_not_finite_are_refused():
    bad = record("a", (0,))
    for value, text in ((np.nan, "not finite"), (np.inf, "not finite"), (-1, "below 0, .* -1$")):
        grids = {k: [g.copy() for g in v] for k, v in bad.grids.items()}
        grids["final"][1][0, 0, 0] = value
        with pytest.raises(BadFile, match=text):
            CamRecord("a", (30, 41), (0,), grids)


def test_unknown_names_are_refused(folder, tmp_path):
    shards = open_shards(folder)
    with pytest.raises(WsssError, match="a stage out of original, final"):
        shards.cam("a", "modulated")
    with pytest.raises(WsssError, match="found 'zebra'"):
        shards.cam("zebra")
    with pytest.raises(WsssError, match="found none"):
        open_shards(tmp_path / "nowhere")
    with pytest.raises(WsssError, match="found none"):
        open_shards(tmp_path)


def test_a_missing_shard_is_told(folder):
    (folder / "cams-00000-of-00002.json").unlink()
    shards = open_shards(folder)
    assert shards.missing_shards == [0]
    assert verify_shards(folder).missing == ["cams-00000-of-00002"]


def test_verify_passes_what_is_whole(folder):
    verdict = verify_shards(folder)
    assert (verdict.shards, verdict.images, verdict.problems, verdict.missing) == (2, 3, [], [])
    assert verdict.failed == {"x": "truncated"}


@pytest.mark.parametrize("extension", ["h5", "json"])
def test_verify_finds_every_flipped_byte(folder, extension):
    path = folder / f"cams-00000-of-00002.{extension}"
    for position in flips(path):
        assert verify_shards(folder).problems, position
    assert not verify_shards(folder).problems


TAMPERINGS = not_plain_data("labels") | {
    "a class beyond the last": (lambda f: f["labels"].__setitem__(0, 200), "class 200 of 3"),
    "offsets beyond the end": (
        lambda f: f["label_offsets"].__setitem__(slice(None), [0, 1 << 40, 1 << 41]), "offsets"),
    "offsets that turn back": (
        lambda f: f["label_offsets"].__setitem__(slice(None), [0, 3, 2]), "offsets"),
    "other ids": (lambda f: f["ids"].__setitem__(0, b"z"), "ids are not those"),
    "values as a link": (
        replace("stages/final", lambda f, n: f.__setitem__(n, h5py.ExternalLink("o.h5", "/v"))),
        "ExternalLink"),
    "negative grid": (lambda f: f["grid_size"].__setitem__((0, 0, 0), -3), "sizes"),
    "an image of no pixels": (lambda f: f["image_size"].__setitem__((0, 0), 0), "pixels"),
    "an image beyond all memory": (
        lambda f: f["image_size"].__setitem__(0, [1 << 30, 1 << 30]), "pixels"),
    "labels that do not ascend": (
        lambda f: f["labels"].__setitem__(slice(None), f["labels"][()][::-1]), "do not ascend"),
    "a scale that is no number": (
        lambda f: f["stages/final/scale"].__setitem__((0, 0), np.nan), "no positive number"),
    "an epsilon of text": (
        lambda f: f["stages/final"].attrs.__setitem__("epsilon", "1e-8"), "is not a number"),
    "no epsilon": (
        lambda f: f["stages/final"].attrs.__delitem__("epsilon"), "epsilon is missing"),
    "the file of another kind": (
        lambda f: f.attrs.__setitem__("format", np.bytes_("wsssfast.labels")), "another kind"),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERINGS)
def test_tampered_files_are_refused_though_their_checksums_fit(folder, name):
    change, text = TAMPERINGS[name]
    reseal(folder / "cams-00000-of-00002.h5", change)
    with pytest.raises(WsssError, match=r"an HDF5 shard at .*cams-00000-of-00002\.h5: .*" + text):
        open_shards(folder).cam("a")
    assert verify_shards(folder).problems


def test_text_of_variable_length_is_not_read(folder):
    """HDF5 reads a damaged heap for ever; files that were written before have their kind there."""
    path = folder / "cams-00000-of-00002.h5"
    reseal(path, lambda f: f.attrs.__setitem__("format", "wsssfast.labels"))
    assert len(open_shards(folder).cam("a")[0])
    with h5py.File(path) as file:
        assert get_text(file, "format") is None


@pytest.mark.parametrize(
    "change",
    [{"ids": [1, 2]}, {"ids": "ab"}, {"failed": []}, {"identity": []}, {"count": "2"}, {"index": 1},
     {"version": 99}, {"kind": "labels"}, {"extra": 1}, {"failed": {"x": 3}}],
)  # fmt: skip
def test_sidecars_of_another_shape_are_refused(folder, change):
    reseal_sidecar(folder / "cams-00000-of-00002.json", change)
    with pytest.raises(WsssError):
        open_shards(folder)
    assert verify_shards(folder).problems
    (folder / "cams-00000-of-00002.json").write_text("null\n")
    with pytest.raises(WsssError, match="damaged"):
        open_shards(folder)


def test_mixed_sets_are_refused(folder):
    write(folder, 1, 2, [record("c", (1,))], identity=IDENTITY | {"ratio": 0.4})
    with pytest.raises(WsssError, match="several mixed"):
        open_shards(folder)
    assert verify_shards(folder).problems == ["shards of several configurations are mixed"]


def test_ids_that_leave_the_folder_are_refused(tmp_path):
    write(tmp_path / "s", 0, 1, [record("a", (0,))])
    reseal_sidecar(tmp_path / "s" / "cams-00000-of-00001.json", {"ids": ["../../evil"]})
    with pytest.raises(WsssError, match="fit for a file name"):
        open_shards(tmp_path / "s")


def test_an_image_in_two_shards_is_refused(folder):
    write(folder, 1, 2, [record("a", (1,))])
    with pytest.raises(WsssError, match="each image once in the shards"):
        open_shards(folder)
    assert verify_shards(folder).problems == ["cams-00001-of-00002: a is there twice"]


def test_a_folder_is_a_path_or_its_text_and_most_of_a_sidecar_may_be_left_out(tmp_path):
    identity = IDENTITY | {"scales": (1.0, 0.5)}
    epsilons = {"original": 1e-8, "final": 1e-9}
    wanted = write_cam_shard(
        str(tmp_path), 0, 1, [record("a", (0,))], identity=identity, epsilons=epsilons
    )
    shards = CamShards(str(tmp_path))
    assert (shards.folder, shards.sidecars) == (tmp_path, {0: wanted})
    assert (wanted.failed, wanted.config, wanted.versions) == ({}, {}, {})
    assert verify_shards(str(tmp_path)).problems == []


@pytest.mark.parametrize(
    ("about", "text"),
    [
        ({"identity": {}}, r"CAM shards with class_names, scales and stages out of .*, found \{\}"),
        ({"identity": IDENTITY | {"stages": ["mine"]}}, "stages out of original, .*mine"),
        ({"identity": IDENTITY | {"ratio": np.ones(2)}}, "the identity in JSON's types: .*ndarray"),
        ({"identity": 3}, "the identity as a dict, found int"),
        ({"config": {"out": Path("x")}}, "config in JSON's types: .*Path"),
        ({"failed": {"x": 3}}, "failed as id -> reason, a text"),
        ({"epsilons": {"final": 1e-8}}, "an epsilon above 0 of each stage"),
    ],
)
def test_what_readers_would_not_know_is_not_written(tmp_path, about, text):
    about = {"identity": IDENTITY, "epsilons": {"original": 1e-8, "final": 1e-9}} | about
    with pytest.raises(WsssError, match=text):
        write_cam_shard(tmp_path, 0, 1, [record("a", (0,))], **about)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("grids", "text"),
    [
        (
            {"final": [np.zeros((1, 3, 5), np.float64)]},
            r"float32 \[1, h, w\], found float64 \[1, 3",
        ),
        ({"final": [np.zeros((2, 3, 5), np.float32)]}, r"found float32 \[2, 3, 5\]"),
        ({"final": [np.zeros((3, 5), np.float32)]}, r"found float32 \[3, 5\]"),
        ({"final": [torch.zeros(1, 3, 5)]}, "found Tensor"),
    ],
)
def test_maps_of_another_form_are_refused(grids, text):
    with pytest.raises(WsssError, match=text):
        CamRecord("a", (30, 41), (0,), grids)


def test_maps_of_other_stages_and_scales_are_not_written(tmp_path):
    whole = record("a", (0,)).grids
    for grids in (
        {"final": whole["final"]},
        {stage: grids[:1] for stage, grids in whole.items()},
        whole | {"original": whole["original"][::-1]},
        {stage: [np.zeros((1, 0, 5), np.float32)] * 2 for stage in whole},
    ):
        with pytest.raises(
            WsssError, match="maps of 2 scales, of the same sizes in each stage, of"
        ):
            write(tmp_path / "s", 0, 1, [CamRecord("a", (30, 41), (0,), grids)])


@pytest.mark.parametrize("background", [(0.5, 0.3), -0.1, 1.1, np.nan, (0.1, 0.2, 0.3), "0.4"])
def test_background_scores_that_decide_nothing_are_refused(folder, background):
    with pytest.raises(WsssError, match="background"):
        open_shards(folder).mask("a", background)
