import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wsssfast.data import index_cache
from wsssfast.data.index_cache import cache_file, open_index

POLYGON = [[0, 0, 3, 0, 3, 3]]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Every file is worth a cache, in a folder of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index_cache, "LEAST", 0)
    return tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch):
    """One entry for each time that the instances file itself is read."""
    seen = []

    def read_index(file):
        seen.append(file.name)
        return original(file)

    original = index_cache.read_index
    monkeypatch.setattr(index_cache, "read_index", read_index)
    return seen


def instances(path, seed=0):
    """An instances file whose cache is smaller than itself; another seed gives the same size."""
    rng = random.Random(seed)
    found = {
        "images": [
            {"id": n, "file_name": f"é{n}\ud83d.jpg", "height": 5, "width": 7, "url": "x" * 200}
            for n in range(10, 30)
        ],
        "annotations": [
            {
                "id": n, "image_id": rng.randint(10, 40), "category_id": rng.randint(1, 3),
                "segmentation": POLYGON, "area": 5,
            }
            for n in range(50)
        ],
        "categories": [{"id": n, "name": f"class {n}"} for n in (1, 2, 3, 2**70)],
    }  # fmt: skip
    path.write_text(json.dumps(found))
    return path


def plain(index):
    texts = {name: array.tolist() for name, array in vars(index.texts).items()}
    rest = {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in vars(index).items()
        if name != "texts"
    }
    return {**rest, **texts}


def test_the_second_time_comes_from_the_cache(tmp_path, reads):
    path = instances(tmp_path / "i.json")
    first = plain(open_index(path))
    assert plain(open_index(path)) == first
    assert len(reads) == 1
    assert [p.name for p in cache_file(path).parent.iterdir()] == [cache_file(path).name]


def test_the_folder_is_the_users(tmp_path, monkeypatch, folder):
    path = tmp_path / "i.json"
    assert cache_file(path).parent == folder / "wsssfast" / "coco"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_file(path).parent == tmp_path / "home" / ".cache" / "wsssfast" / "coco"


def test_each_file_has_a_cache_of_its_own(tmp_path, reads):
    one, two = instances(tmp_path / "1.json"), instances(tmp_path / "2.json", 1)
    assert plain(open_index(one)) != plain(open_index(two))
    assert plain(open_index(one)) != plain(open_index(two))
    (tmp_path / "link.json").symlink_to(one)
    assert plain(open_index(tmp_path / "link.json")) == plain(open_index(one))
    assert len(reads) == 2


def test_small_files_are_not_kept(tmp_path, monkeypatch, folder):
    path = instances(tmp_path / "i.json")
    monkeypatch.setattr(index_cache, "LEAST", path.stat().st_size + 1)
    open_index(path)
    assert not folder.exists()


@pytest.mark.parametrize("keep_time", [False, True])
def test_a_changed_file_is_read_anew(tmp_path, reads, keep_time):
    path = instances(tmp_path / "i.json")
    open_index(path)
    before = path.stat()
    instances(path, 1)
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    found = plain(open_index(path))
    assert len(reads) == 2
    assert found == plain(open_index(path))
    assert len(reads) == 2


def test_other_bytes_are_noticed_where_the_system_keeps_no_time(tmp_path, monkeypatch, reads):
    path = instances(tmp_path / "i.json")
    record = path.stat()
    monkeypatch.setattr(index_cache.os, "fstat", lambda handle: record)
    open_index(path)
    instances(path, 1)
    open_index(path)
    assert len(reads) == 2


def test_a_file_that_changes_while_it_is_read_is_not_kept(tmp_path, monkeypatch, folder):
    path = instances(tmp_path / "i.json")
    original = index_cache.read_index

    def read_index(file):
        found = original(file)
        os.utime(path, ns=(5, 5))
        return found

    monkeypatch.setattr(index_cache, "read_index", read_index)
    open_index(path)
    assert not folder.exists()


def test_a_damaged_cache_is_made_anew(tmp_path, reads):
    path = instances(tmp_path / "i.json")
    expected = plain(open_index(path))
    kept = cache_file(path)
    good = kept.read_bytes()
    rng = random.Random(0)
    spots = [*range(45), *(rng.randrange(len(good)) for _ in range(100))]
    flipped = [good[:n] + bytes([good[n] ^ 1 << rng.randrange(8)]) + good[n + 1 :] for n in spots]
    cut = [good[:n] for n in spots]
    for number, data in enumerate([*flipped, *cut, b"", good + b"\0", b"\0" * len(good)]):
        kept.write_bytes(data)
        assert plain(open_index(path)) == expected
        assert len(reads) == number + 2
        assert kept.read_bytes() == good


def signed(content):
    return hashlib.sha256(content).digest() + content


def rewritten(data, change):
    """The cache with another header, its checksum made good."""
    end = 40 + int.from_bytes(data[32:40], "little")
    header = json.loads(data[40:end])
    header = change(header) or header
    text = json.dumps(header).encode()
    return signed(len(text).to_bytes(8, "little") + text + data[end:])


HEADERS = {
    "no object": lambda h: [1],
    "no identity": lambda h: h.pop("identity") and None,
    "of another file": lambda h: h["identity"].update(inode=-1),
    "of another format": lambda h: h["identity"].update(format=0),
    "no names": lambda h: h.pop("file_names") and None,
    "a name less": lambda h: h["file_names"].pop() and None,
    "a name that is none": lambda h: h["file_names"].__setitem__(0, 5),
    "names that are none": lambda h: h.update(file_names=5),
    "a category that is none": lambda h: h["categories"].__setitem__(0, [1]),
    "a category without number": lambda h: h["categories"].__setitem__(0, ["1", "a"]),
    "a category id less": lambda h: h["category_ids"].pop() and None,
    "a category id that is none": lambda h: h["category_ids"].__setitem__(0, 1.5),
    "an array less": lambda h: h["sizes"].pop() and None,
    "an array more": lambda h: h["sizes"].append(0),
    "arrays that are none": lambda h: h.update(sizes="abc"),
    "arrays too long": lambda h: h["sizes"].__setitem__(0, 2**200),
    "arrays endless": lambda h: h["sizes"].__setitem__(0, float("inf")),
    "an array below nothing": lambda h: h["sizes"].__setitem__(0, -2),
    "other lengths": lambda h: h["sizes"].__setitem__(slice(0, 2), [38, 22]),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_cache_that_says_what_cannot_be_is_made_anew(tmp_path, reads, name):
    path = instances(tmp_path / "i.json")
    expected = plain(open_index(path))
    kept = cache_file(path)
    good = kept.read_bytes()
    kept.write_bytes(rewritten(good, HEADERS[name]))
    assert plain(open_index(path)) == expected
    assert len(reads) == 2
    assert kept.read_bytes() == good


@pytest.mark.parametrize("value", [-(2**63), -2, 2**40, 2**63 - 1])
def test_numbers_out_of_range_are_never_used(tmp_path, reads, value):
    path = instances(tmp_path / "i.json")
    expected = plain(open_index(path))
    kept = cache_file(path)
    good = kept.read_bytes()
    start = 40 + int.from_bytes(good[32:40], "little") + 40 * 8  # past the images' sizes
    for place in range(start, len(good), 8):
        data = good[:place] + value.to_bytes(8, "little", signed=True) + good[place + 8 :]
        kept.write_bytes(signed(data[32:]))
        assert plain(open_index(path)) == expected
        assert kept.read_bytes() == good


@pytest.mark.parametrize("depth", [0, 100_000])
def test_a_header_that_is_no_json_is_never_used(tmp_path, reads, depth):
    path = instances(tmp_path / "i.json")
    expected = plain(open_index(path))
    text = b"[" * depth
    cache_file(path).write_bytes(signed(len(text).to_bytes(8, "little") + text))
    assert plain(open_index(path)) == expected
    assert len(reads) == 2


@pytest.mark.parametrize("block", ["", "wsssfast", "wsssfast/coco"])
def test_a_folder_that_cannot_be_made_stops_nothing(tmp_path, reads, folder, block):
    path = instances(tmp_path / "i.json")
    (folder / block).parent.mkdir(parents=True, exist_ok=True)
    (folder / block).write_text("a file")
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="cannot be kept .*; each run reads the file anew"):
            assert len(open_index(path).file_names) == 20
    assert len(reads) == 2


def test_something_else_in_the_caches_place_stops_nothing(tmp_path, reads):
    path = instances(tmp_path / "i.json")
    cache_file(path).mkdir(parents=True)
    with pytest.warns(RuntimeWarning, match="cannot be kept"):
        open_index(path)
    assert [p.name for p in cache_file(path).parent.iterdir()] == [cache_file(path).name]
    cache_file(path).rmdir()
    os.mkfifo(cache_file(path))
    open_index(path)
    assert cache_file(path).is_file()


def test_a_user_without_home_is_warned(tmp_path, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.warns(RuntimeWarning, match="cannot be kept"):
        open_index(instances(tmp_path / "i.json"))


def test_processes_may_do_it_at_once(tmp_path, reads):
    path = instances(tmp_path / "i.json")
    code = (
        "import sys; from pathlib import Path; from wsssfast.data import index_cache as c\n"
        "c.LEAST = 0; sys.stdin.readline()\n"
        "for _ in range(40):\n"
        "    assert len(c.open_index(Path(sys.argv[1])).file_names) == 20\n"
        "    c.cache_file(Path(sys.argv[1])).unlink(missing_ok=True)\n"
        "c.open_index(Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, path]
    running = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(2)]
    for process in running:
        process.stdin.write(b"\n")
        process.stdin.close()
    assert [process.wait(100) for process in running] == [0, 0]
    assert [p.name for p in cache_file(path).parent.iterdir()] == [cache_file(path).name]
    open_index(path)
    assert reads == []
