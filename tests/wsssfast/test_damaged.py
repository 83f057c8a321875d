"""Hundreds of damaged files in a run: none stops it, all are listed, what is whole is done."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from support import random_image, tiny_model

from wsssfast.cam_options import CamOptions
from wsssfast.data import open_dataset
from wsssfast.export import export_cams
from wsssfast.shards import open_shards, verify_shards

SIZES = ((24, 16), (16, 24), (32, 32))


def encoded(kind, seed, **options):
    buffer = io.BytesIO()
    random_image(*SIZES[seed % len(SIZES)], seed).save(buffer, kind, **options)
    return buffer.getvalue()


def fuzzed(data, chance, share):
    """Bytes of a file, some of them replaced at random."""
    found = bytearray(data)
    for _ in range(max(1, int(len(found) * share))):
        found[chance.randrange(len(found))] = chance.randrange(256)
    return bytes(found)


def png_of_size(width, height):
    """A header that promises pixels which never come."""
    body = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + body
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(body)) + chunk
        + struct.pack(">I", zlib.crc32(chunk)) + b"\x00\x00\x00\x00IDAT"
    )  # fmt: skip


def jpeg_of_size(width, height):
    """A JPEG whose header has another size than its pixels."""
    found = bytearray(encoded("JPEG", 0))
    at = found.index(b"\xff\xc0") + 5
    found[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(found)


def damaged():
    """name -> bytes of files of which none can be decoded as it was meant."""
    chance = random.Random(0)
    jpeg, png = encoded("JPEG", 0, quality=95), encoded("PNG", 0)
    files = {f"cut{n}.jpg": jpeg[: n * len(jpeg) // 30] for n in range(30)}
    files |= {f"cutp{n}.png": png[: n * len(png) // 30] for n in range(30)}
    files |= {f"empty{n}.jpg": b"" for n in range(10)}
    files |= {f"zero{n}.png": bytes(n + 1) for n in range(10)}
    files |= {f"noise{n}.jpg": chance.randbytes(1 + 37 * n) for n in range(30)}
    files |= {f"head{n}.jpg": jpeg[:20] + chance.randbytes(50 * n) for n in range(10)}
    files |= {f"text{n}.png": b"<html>404 not found</html>" * n for n in range(10)}
    files |= {f"huge{n}.png": png_of_size(2**n, 2**n) for n in range(15, 31)}
    files |= {f"wide{n}.jpg": jpeg_of_size(65500, 2000 * n) for n in range(2, 30)}
    return files


def odd():
    """name -> bytes of files that may or may not decode: whatever happens, it is told."""
    chance = random.Random(1)
    files = {}
    for n in range(40):
        files[f"fuzzj{n}.jpg"] = fuzzed(encoded("JPEG", n), chance, (0.002, 0.02, 0.2)[n % 3])
        files[f"fuzzp{n}.png"] = fuzzed(encoded("PNG", n), chance, (0.002, 0.02, 0.2)[n % 3])
        files[f"fuzzg{n}.gif"] = fuzzed(encoded("GIF", n), chance, 0.02)
        files[f"fuzzt{n}.tif"] = fuzzed(encoded("TIFF", n), chance, 0.02)
        files[f"fuzzw{n}.webp"] = fuzzed(encoded("WEBP", n), chance, 0.02)
    return files


def whole():
    """name -> bytes of good files, some under another format's name."""
    kinds = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
    return {f"good{n}.{'jpg' if n % 2 else 'png'}": encoded(kinds[n % 7], n) for n in range(42)}


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    files = damaged() | odd() | whole()
    for name, content in files.items():
        (root / "images" / name).write_bytes(content)
    (root / "images" / "folder.jpg").mkdir()
    (root / "images" / "nowhere.jpg").symlink_to(root / "nothing")
    rows = "".join(f"{name},cat\n" for name in sorted([*files, "folder.jpg", "nowhere.jpg"]))
    (root / "labels.csv").write_text("image,labels\n" + rows)
    (root / "classes.txt").write_text("cat\ndog\ncow\n")
    return open_dataset("folder", root)


def test_no_damaged_file_stops_a_run_and_all_are_listed(data, tmp_path):
    bad = {name.rpartition(".")[0] for name in damaged()} | {"folder", "nowhere"}
    good = {name.rpartition(".")[0] for name in whole()}
    assert len(bad) >= 170 and len(odd()) == 200
    out = tmp_path / "out"
    summary = export_cams(tiny_model(), data, out, CamOptions(), shard_size=64)
    shards = open_shards(out)
    assert bad <= summary.failed.keys()
    assert good <= set(shards.ids)
    assert set(shards.ids) | summary.failed.keys() == {item.id for item in data}
    assert not set(shards.ids) & summary.failed.keys()
    assert len(summary.failed) >= 200
    assert all(reason and "\n" not in reason for reason in summary.failed.values())
    assert not verify_shards(out).problems
    assert all(np.isfinite(shards.cam(image_id)[1]).all() for image_id in shards)
    again = export_cams(tiny_model(), data, out, CamOptions(), shard_size=64)
    assert (again.written_shards, again.failed) == (0, summary.failed)


def test_a_good_file_under_another_formats_name_is_decoded_as_what_it_is(data):
    item = data.by_id["good5"]
    assert item.image.suffix == ".jpg"
    with Image.open(item.image) as found:
        assert found.format == "WEBP"
    assert data.load_image(item).size == data.image_size(item)
