"""Changes that break files: bytes, JSON values, HDF5 contents, names."""

import contextlib
import copy
import json
import random
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tampering import not_plain_data, reseal, reseal_sidecar

INTEGERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1e308, -1e308, float("inf"), 2**63, 10**400, "", "x" * 100000,
    "../../outside", "/tmp/outside", "a\x00b", "\ud800", [], {}, [[]], {"": {}}, "1", [0] * 1000,
)  # fmt: skip


def bytes_of(data: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, moved, repeated or cut away."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        if not found:
            return bytes(chance.randbytes(chance.randrange(64)))
        at = chance.randrange(len(found))
        span = chance.choice((1, 2, 4, 8, 64, 1024))
        way = chance.randrange(7)
        if way == 0:
            found[at] ^= 1 << chance.randrange(8)
        elif way == 1:
            found[at : at + span] = chance.randbytes(span)
        elif way == 2:
            number, width = chance.choice(INTEGERS), chance.choice((1, 2, 4, 8))
            order = chance.choice(("little", "big"))
            found[at : at + width] = (number % (1 << 8 * width)).to_bytes(width, order)
        elif way == 3:
            del found[at : at + span]
        elif way == 4:
            found[at:at] = found[at : at + span]
        elif way == 5:
            del found[at:]
        else:
            other = chance.randrange(len(found))
            found[at : at + span] = found[other : other + span]
    return bytes(found)


def value_of(value: Any, chance: random.Random) -> Any:
    """A JSON value with one place of it changed."""
    whole = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        for key in keys:
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    if not isinstance(whole, dict | list) or not whole:
        return chance.choice(ODD)
    walk(whole)
    node, key = chance.choice(places)
    way = chance.randrange(5)
    if way == 0:
        del node[key]
    elif way == 1 and isinstance(node, dict):
        node[chance.choice(("", "x", "../../outside", str(key) + "s"))] = node.pop(key)
    elif way == 2 and isinstance(node[key], int | float) and not isinstance(node[key], bool):
        node[key] = node[key] + chance.choice((-1, 1, 0.5, 2**31, -(2**31)))
    elif way == 3:
        other, place = chance.choice(places)
        node[key] = copy.deepcopy(other[place])
    else:
        node[key] = chance.choice(ODD)
    return whole


def json_of(text: bytes, chance: random.Random) -> bytes:
    """The text of JSON: a value of it changed, its bytes, or brackets without end."""
    way = chance.randrange(10)
    if way == 0:
        depth = chance.choice((500, 5000, 200000))
        return (chance.choice("[{") * depth).replace("{", '{"a":').encode()
    if way < 4:
        return bytes_of(text, chance)
    changed = value_of(json.loads(text), chance)
    return json.dumps(changed).encode("utf-8", "surrogatepass")


def shard_of(folder: Path, chance: random.Random) -> None:
    """A folder of shards: bytes as they are, or with checksums made to fit."""
    files = sorted(folder.glob("*-of-*"))
    path = chance.choice(files)
    sidecar = path.with_suffix(".json")
    way = chance.randrange(5)
    if way == 0:
        path.write_bytes(bytes_of(path.read_bytes(), chance))
    elif way == 1:
        changed = value_of(json.loads(sidecar.read_text()), chance)
        if isinstance(changed, dict) and "checksum" in changed:
            reseal_sidecar(sidecar, {})
            body = json.loads(sidecar.read_text())
            for key in set(body) - set(changed):
                del body[key]
            sidecar.write_text(json.dumps(body))
            reseal_sidecar(sidecar, {k: v for k, v in changed.items() if k != "checksum"})
    elif way == 2:
        path = path.with_suffix(".h5")
        path.write_bytes(bytes_of(path.read_bytes(), chance))
        with contextlib.suppress(OSError, RuntimeError):  # no whole HDF5 file any more
            reseal(path, lambda file: None)
    else:
        reseal(path.with_suffix(".h5"), lambda file: contents_of(file, chance))


def contents_of(file: h5py.File, chance: random.Random) -> None:
    """Another data set, attribute or value in an HDF5 file."""
    names: list[str] = []
    file.visititems(
        lambda name, node: names.append(name) if isinstance(node, h5py.Dataset) else None
    )
    name = chance.choice(names)
    way = chance.randrange(5)
    if way == 0:
        change, _ = chance.choice(sorted(not_plain_data(name).items()))[1]
        change(file)
    elif way == 1:
        shape = chance.choice([(), (0,), (1,), (7,), (2, 2), (100000,)])
        kind = chance.choice(["uint8", "int64", "float32", "float64", "uint16", "S4", "bool"])
        del file[name]
        file.create_dataset(name, data=np.zeros(shape, kind))
    elif way == 2 and file.attrs:
        key = chance.choice(sorted(file.attrs))
        file.attrs[key] = chance.choice([0, -1, "", "x", 2**40, np.zeros(3)])
    elif file[name].size and file[name].dtype.kind in "iuf" and file[name].ndim:
        at = chance.randrange(file[name].shape[0])
        values = file[name][at]
        limit = np.iinfo(values.dtype) if values.dtype.kind in "iu" else np.finfo(values.dtype)
        drawn = [limit.max, limit.min, 0] + ([np.nan, np.inf] if values.dtype.kind == "f" else [])
        file[name][at] = np.full_like(values, chance.choice(drawn))
