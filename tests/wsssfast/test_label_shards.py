"""Label shards: reading, checksums, and files that were tampered with."""

import os
import pickle
import re
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from tampering import flips, not_plain_data, reseal, reseal_sidecar

from wsssfast.errors import WsssError
from wsssfast.shards import (
    CamShards,
    LabelRecord,
    LabelShards,
    open_shards,
    verify_shards,
    write_label_shard,
)

IDENTITY = {"class_names": ["cat", "dog", "cow"], "stage": "final", "background": [0.4]}
DOCS = Path(__file__).resolve().parents[2] / "docs" / "shards.md"
FIRST = "labels-00000-of-00002"


def random_mask(seed, size=(30, 41)):
    return np.random.RandomState(seed).choice([0, 1, 3, 255], size=size).astype(np.uint8)


MASKS = {
    "a": ((0, 2), random_mask(1)),
    "b": ((), np.zeros((47, 5), np.uint8)),
    "ünï": ((1,), np.full((1, 1), 2, np.uint8)),
}


def write(folder, index, names, failed=None, identity=None):
    folder.mkdir(exist_ok=True)
    records = [LabelRecord.of(name, *MASKS[name]) for name in names]
    about = {"config": {"a": 1}, "versions": {"b": "2"}}
    return write_label_shard(
        folder, index, 2, records, failed=failed or {}, identity=identity or IDENTITY, **about
    )


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "s", 0, ["a", "b"])
    write(tmp_path / "s", 1, ["ünï"], {"x": "truncated"})
    return tmp_path / "s"


def test_reading_gives_back_what_was_written(folder):
    shards = open_shards(folder)
    assert isinstance(shards, LabelShards)
    assert (shards.folder, shards.kind, shards.identity) == (folder, "labels", IDENTITY)
    assert (shards.ids, tuple(shards), len(shards)) == (tuple(MASKS), tuple(MASKS), 3)
    assert (shards.failed, shards.missing_shards) == ({"x": "truncated"}, [])
    assert shards.class_names == ("cat", "dog", "cow")
    for name, (labels, wanted) in MASKS.items():
        for _ in range(2):
            mask = shards.mask(name)
            assert (mask.dtype, mask.shape) == (np.uint8, wanted.shape)
            assert np.array_equal(mask, wanted)
            mask[:] = 7  # the reader's own copy
        assert shards.labels(name).tolist() == list(labels)
        assert shards.labels(name).dtype == np.int64


def test_a_shard_without_any_image_can_be_read(tmp_path):
    write(tmp_path / "s", 0, [], {"x": "truncated", "y": "no CAM"})
    write(tmp_path / "s", 1, ["a"])
    assert open_shards(tmp_path / "s").ids == ("a",)
    assert not verify_shards(tmp_path / "s").problems


def test_the_documented_reader_reads_shards_without_the_package(folder):
    code = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)[1]
    assert "wsssfast" not in code
    assert len(code.splitlines()) <= 20
    namespace = {}
    exec(code, namespace)  # our own documentation
    for name, shard in (("a", 0), ("b", 0), ("ünï", 1)):
        mask = namespace["mask"](folder / f"labels-{shard:05d}-of-00002.h5", name)
        assert np.array_equal(mask, MASKS[name][1])


def test_writing_twice_gives_the_same_bytes(folder, tmp_path):
    write(tmp_path / "t", 0, ["a", "b"])
    for extension in (".h5", ".json"):
        name = FIRST + extension
        assert (tmp_path / "t" / name).read_bytes() == (folder / name).read_bytes()


def test_the_file_says_what_it_is(folder):
    with h5py.File(folder / f"{FIRST}.h5") as file:
        assert (file.attrs["format"], file.attrs["version"]) == (b"wsssfast.labels", 1)
        assert file["data"].chunks is None


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_readers_work_in_forked_and_other_processes(folder):
    shards = open_shards(folder)
    wanted = shards.mask("a")
    again = pickle.loads(pickle.dumps(shards))
    assert np.array_equal(again.mask("a"), wanted)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(shards.mask("a"), wanted) and len(shards.mask("b")) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(shards.mask("a"), wanted)


def test_files_are_closed_when_the_reader_goes_or_has_too_many(folder, monkeypatch):
    import wsssfast.shards.shard_set as shard_set

    def opened():
        links = list(Path("/proc/self/fd").iterdir())
        return sum(str(folder) in str(link.readlink()) for link in links if link.is_symlink())

    monkeypatch.setattr(shard_set, "_MOST_KEPT", 1)
    shards = open_shards(folder)
    for _ in range(3):
        assert np.array_equal(shards.mask("a"), MASKS["a"][1])
        assert np.array_equal(shards.mask("ünï"), MASKS["ünï"][1])
        assert opened() == 1
    del shards
    assert opened() == 0


def test_unknown_names_and_other_kinds_are_refused(folder, tmp_path):
    with pytest.raises(WsssError, match="found 'zebra'"):
        open_shards(folder).mask("zebra")
    with pytest.raises(WsssError, match=r"Expected label shards in .*, found none\. Make them"):
        LabelShards(tmp_path)
    with pytest.raises(WsssError, match=r"Expected CAM shards in .*, found label shards") as caught:
        CamShards(folder)
    assert "wsssfast export-cams" in caught.value.remedy
    (folder / "cams-00000-of-00001.json").touch()
    for opener in (open_shards, verify_shards):
        with pytest.raises(
            WsssError, match=r"of one kind in .*, found CAM shards and label shards"
        ):
            opener(folder)


def test_missing_and_mixed_shards_are_told(folder):
    (folder / f"{FIRST}.json").unlink()
    assert open_shards(folder).missing_shards == [0]
    assert verify_shards(folder).missing == [FIRST]
    write(folder, 0, ["a"], identity=IDENTITY | {"background": [0.5]})
    with pytest.raises(WsssError, match="several mixed"):
        open_shards(folder)
    assert verify_shards(folder).problems == ["shards of several configurations are mixed"]


@pytest.mark.parametrize("extension", ["h5", "json"])
def test_verify_finds_every_flipped_byte(folder, extension):
    verdict = verify_shards(folder)
    assert (verdict.shards, verdict.images, verdict.problems, verdict.missing) == (2, 3, [], [])
    assert verdict.failed == {"x": "truncated"}
    path = folder / f"{FIRST}.{extension}"
    for position in flips(path):
        assert verify_shards(folder).problems, position


def store(*streams):
    """Put other zlib streams in place of the masks of a and b."""

    def change(file):
        del file["data"], file["offsets"]
        file["data"] = np.frombuffer(b"".join(streams), np.uint8)
        file["offsets"] = np.cumsum([0, *map(len, streams)], dtype=np.int64)

    return change


def set_first(name, value):
    return lambda file: file[name].__setitem__(0, value)


def compressed_data(file):
    data = file["data"][()]
    del file["data"]
    file.create_dataset("data", data=data, compression="gzip")


WHOLE = zlib.compress(bytes(30 * 41))
B = zlib.compress(bytes(47 * 5))
TAMPERINGS = not_plain_data("data") | {
    "external labels": not_plain_data("labels")["external link"],
    "a bomb": (store(zlib.compress(bytes(1 << 20)), B), "not of 30 x 41 pixels"),
    "too few pixels": (store(zlib.compress(bytes(30 * 41 - 1)), B), "not of 30 x 41"),
    "one pixel too many": (store(zlib.compress(bytes(30 * 41 + 1)), B), "not of 30 x 41"),
    "a stream cut short": (store(WHOLE[:-1], B), "not of 30 x 41"),
    "more after the stream": (store(WHOLE + b"x", B), "not of 30 x 41"),
    "no stream": (store(b"abcdefgh", B), "incorrect header"),
    "an empty stream": (store(b"", B), "too short"),
    "a value of no class": (store(zlib.compress(bytes([4] * 30 * 41)), B), "no class"),
    "an image far larger than its stream": (set_first("image_size", [16384, 16384]), "too short"),
    "an image beyond all memory": (set_first("image_size", [1 << 30, 1 << 30]), "pixels"),
    "an image of no pixels": (set_first("image_size", [0, 5]), "pixels"),
    "offsets that begin late": (set_first("offsets", 1), "offsets do not fit"),
    "offsets beyond the end": (
        lambda f: f["offsets"].__setitem__(slice(None), [0, 1 << 40, 1 << 41]), "offsets"),
    "offsets that turn back": (
        lambda f: f["offsets"].__setitem__(1, 1 << 40), "offsets"),
    "fewer offsets": (
        lambda f: (f.__delitem__("offsets"), f.__setitem__("offsets", np.zeros(1, "int64"))),
        "offsets has type int64 and shape"),
    "data in compressed pieces": (compressed_data, "not stored in one piece"),
    "a class beyond the last": (set_first("labels", 3), "class 3 of 3"),
    "other ids": (set_first("ids", b"z"), "ids are not those"),
    "CAMs": (lambda f: f.attrs.__setitem__("format", np.bytes_("wsssfast.cams")), "another kind"),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERINGS)
def test_tampered_files_are_refused_though_their_checksums_fit(folder, name):
    change, text = TAMPERINGS[name]
    reseal(folder / f"{FIRST}.h5", change)
    with pytest.raises(WsssError, match=rf"an HDF5 shard at .*{FIRST}\.h5: .*{text}"):
        open_shards(folder).mask("a")
    assert verify_shards(folder).problems


@pytest.mark.parametrize("names", [[], "cat", [1, 2], [str(n) for n in range(255)], None])
def test_identities_without_fitting_classes_are_refused(folder, names):
    for index in range(2):
        change = {"identity": IDENTITY | {"class_names": names}}
        reseal_sidecar(folder / f"labels-{index:05d}-of-00002.json", change)
    with pytest.raises(WsssError, match="the configuration of label shards"):
        open_shards(folder)


def test_a_file_cut_after_it_was_opened_is_refused(folder):
    shards = open_shards(folder)
    shards.labels("a")
    path = folder / f"{FIRST}.h5"
    os.truncate(path, path.stat().st_size // 4)
    with pytest.raises(WsssError, match="not of 30 x 41 pixels"):
        shards.mask("a")


def test_a_shard_whose_file_is_gone_is_told_and_missing(folder):
    shards, all_of_them = open_shards(folder), verify_shards(folder)
    (folder / f"{FIRST}.h5").unlink()
    with pytest.raises(WsssError, match="file not found"):
        shards.mask("a")
    assert open_shards(folder).missing_names == [FIRST]
    verdict = verify_shards(folder)
    assert (verdict.missing, verdict.problems) == ([FIRST], [])
    assert verdict.shards == all_of_them.shards - 1


def test_a_shard_of_ones_own_takes_an_identity_alone_and_replaces_the_one_before(tmp_path):
    for value in (1, 3):
        mask = np.full((4, 5), value, np.uint8)
        wanted = write_label_shard(
            str(tmp_path), 0, 1, [LabelRecord.of("a", [0], mask)], identity=IDENTITY
        )
    shards = LabelShards(str(tmp_path))
    assert (shards.folder, shards.sidecars) == (tmp_path, {0: wanted})
    assert (wanted.failed, wanted.config, wanted.versions) == ({}, {}, {})
    assert np.array_equal(shards.mask("a"), mask)


@pytest.mark.parametrize("dtype", ["int64", "uint16", "int8", ">i4"])
def test_masks_of_other_integers_are_stored_as_bytes(tmp_path, dtype):
    wanted = random_mask(1) if dtype != "int8" else random_mask(1) % 4
    records = [LabelRecord.of("a", (), wanted.astype(dtype))]
    write_label_shard(tmp_path, 0, 1, records, identity=IDENTITY)
    assert np.array_equal(LabelShards(tmp_path).mask("a"), wanted)


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (np.zeros((4, 5), np.float32), r"array of integers \[H, W\], found float32 \[4, 5\]"),
        (np.zeros((4, 5), bool), "found bool"),
        (np.zeros((4, 5, 3), np.uint8), r"found uint8 \[4, 5, 3\]"),
        (torch.zeros(4, 5, dtype=torch.uint8), "found Tensor"),
        (np.full((4, 5), -1), "values from 0 to 255 in the mask of im0, found -1"),
        (np.full((4, 5), 256), "found 256"),
    ],
)
def test_what_is_no_mask_is_refused(mask, text):
    with pytest.raises(WsssError, match=text):
        LabelRecord.of("im0", (0,), mask)


BYTES = np.zeros((4, 5), np.uint8)


@pytest.mark.parametrize(
    ("records", "text"),
    [
        ([("a", (), BYTES + 4)], "mask values up to 3 and 255 in the mask of a, found 4"),
        ([("a", (3,), BYTES)], "ascending labels from 0 to 2 of a, found 3"),
        ([("a", (-1,), BYTES)], "found -1"),
        ([("a", (1, 0), BYTES)], "found 1, 0"),
        ([("a", ("cat",), BYTES)], "found cat"),
        ([("a", (), BYTES), ("b", (), BYTES), ("a", (), BYTES)], "each image once .*more of a"),
        ([("a/b", (), BYTES)], "fit for a file name, found 'a/b'"),
        ([(3, (), BYTES)], "image ids of text, found 3"),
        ([("a", (), BYTES[:0])], r"1 to 268435456 pixels of a, found \(0, 5\)"),
    ],
)
def test_records_that_readers_would_refuse_are_not_written(tmp_path, records, text):
    with pytest.raises(WsssError, match=text):
        write_label_shard(
            tmp_path, 0, 1, [LabelRecord.of(*record) for record in records], identity=IDENTITY
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", [(3, 2), (2, 2), (-1, 2), (0, 0), (0, 100_000), (0.0, 1)])
def test_places_that_no_shard_has_are_refused(tmp_path, place):
    with pytest.raises(WsssError, match=r"a shard's index from 0 and below the count, .*, found"):
        write_label_shard(tmp_path, *place, [], identity=IDENTITY)


@pytest.mark.parametrize("names", [[], "cat", [1], [str(n) for n in range(255)]])
def test_an_identity_without_fitting_classes_is_not_written(tmp_path, names):
    with pytest.raises(WsssError, match="label shards with class_names, at most 254, found"):
        write_label_shard(tmp_path, 0, 1, [], identity={"class_names": names})
