"""Change shards as an attacker would: with checksums that fit."""

import hashlib
import json

import h5py
import numpy as np

from wsssfast.shards.format import canonical


def flips(path, most=200):
    """Flip bytes of a file one at a time, from the first to the last; yields each position."""
    whole = path.read_bytes()
    for position in [*range(0, len(whole), max(1, len(whole) // most)), len(whole) - 1]:
        broken = bytearray(whole)
        broken[position] ^= 1 << position % 8
        path.write_bytes(broken)
        yield position
    path.write_bytes(whole)


def reseal(path, change):
    """Change a shard's HDF5 file by `change(h5py.File)`."""
    with h5py.File(path, "r+") as file:
        change(file)
    found = {
        "file_bytes": path.stat().st_size,
        "file_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    reseal_sidecar(path.with_suffix(".json"), found)


def reseal_sidecar(path, change):
    """Change keys of a sidecar."""
    body = json.loads(path.read_text())
    del body["checksum"]
    body |= change
    body["checksum"] = hashlib.sha256(canonical(body).encode()).hexdigest()
    path.write_text(canonical(body) + "\n")


def replace(name, make):
    """Put `make(file, name)` where the data set `name` was."""

    def change(file):
        del file[name]
        make(file, name)

    return change


def _external_storage(file, name):
    outside = [("/etc/hostname", 0, h5py.h5f.UNLIMITED)]
    file.create_dataset(name, (2,), "uint8", external=outside)


def _virtual(file, name):
    layout = h5py.VirtualLayout((2,), "uint8")
    layout[:] = h5py.VirtualSource("other.h5", name, (2,))
    file.create_virtual_dataset(name, layout)


def _huge(file, name):
    file.create_dataset(name, (1 << 40,), "uint8", chunks=(1 << 20,), compression="gzip")


def _lzf(file, name):
    file.create_dataset(name, data=np.zeros(2, "uint8"), compression="lzf")


def not_plain_data(name):
    """What a flat uint8 data set may be replaced by: case -> (change of the file, the refusal)."""
    external = h5py.ExternalLink("other.h5", f"/{name}")
    return {
        "external link": (replace(name, lambda f, n: f.__setitem__(n, external)), "ExternalLink"),
        "soft link": (
            replace(name, lambda f, n: f.__setitem__(n, h5py.SoftLink("/ids"))),
            "SoftLink",
        ),
        "external storage": (replace(name, _external_storage), "outside the file"),
        "virtual data": (replace(name, _virtual), "outside the file"),
        "declares more than it holds": (replace(name, _huge), "more than the file holds"),
        "another filter": (replace(name, _lzf), "uses the filter"),
        "another type": (
            replace(name, lambda f, n: f.__setitem__(n, np.zeros(2, "float64"))),
            "has type float64",
        ),
        "a group": (replace(name, lambda f, n: f.create_group(n)), "is not a data set"),
        "nothing": (lambda f: f.__delitem__(name), "is missing"),
    }
