"""What each compression option of HDF5 costs and saves on real CAM shards; ends in one JSON line.

Takes the values of every stage of a folder of shards and writes them anew under each option, in
chunks as the store has them, then reads them all; medians of several rounds.

    python benchmarks/store_options.py cams
"""

import argparse
import io
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import h5py
import numpy as np

from wsssfast.bench.report import machine
from wsssfast.shards import open_shards

OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "lzf": {"compression": "lzf"},
    "lzf + shuffle": {"compression": "lzf", "shuffle": True},
    "gzip 1": {"compression": "gzip", "compression_opts": 1},
    "gzip 1 + shuffle": {"compression": "gzip", "compression_opts": 1, "shuffle": True},
    "gzip 4 + shuffle": {"compression": "gzip", "compression_opts": 4, "shuffle": True},
    "gzip 9 + shuffle": {"compression": "gzip", "compression_opts": 9, "shuffle": True},
}
CHUNK = 1 << 16


def stored(values: np.ndarray, options: dict[str, Any]) -> tuple[float, float, int]:
    """Seconds to write and to read, and bytes."""
    buffer = io.BytesIO()
    begin = time.perf_counter()
    with h5py.File(buffer, "w") as file:
        file.create_dataset("values", data=values, chunks=(min(CHUNK, values.size),), **options)
    written = time.perf_counter()
    with h5py.File(buffer, "r") as file:
        again = file["values"][:]
    read = time.perf_counter()
    assert np.array_equal(again, values)
    return written - begin, read - written, buffer.tell()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("shards", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    images, arrays = len(open_shards(args.shards)), []
    for path in sorted(args.shards.glob("cams-*.h5")):
        with h5py.File(path) as file:
            arrays += [group["values"][:] for group in file["stages"].values()]
    rounds = [
        {name: [stored(values, options) for values in arrays] for name, options in OPTIONS.items()}
        for _ in range(args.rounds)
    ]
    rows = {}
    for name in OPTIONS:
        totals = [[sum(part) for part in zip(*found[name], strict=True)] for found in rounds]
        write, read, size = (median(column) for column in zip(*totals, strict=True))
        rows[name] = {
            "bytes_an_image": round(size / images),
            "write_microseconds_an_image": round(1e6 * write / images, 1),
            "read_microseconds_an_image": round(1e6 * read / images, 1),
        }
    print(json.dumps({
        "benchmark": "store_options", **machine("cpu"), "images": images, "options": rows,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
