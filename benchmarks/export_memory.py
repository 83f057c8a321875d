"""Peak memory of `export-cams` by the number of images; ends in one JSON line.

Each export is a process of its own, by the command line; the peak is what the system says of it.

    python benchmarks/export_memory.py 500 3800 -- --dataset voc --data-root VOCdevkit/VOC2012 \\
        --split train_aug+val --checkpoint classifier.safetensors --scales 0.5
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from wsssfast.bench.report import machine
from wsssfast.data import open_dataset


def export(images: int, options: list[str], folder: Path) -> tuple[int, float]:
    """(peak in bytes, seconds of processor time) of an export of the first images."""
    chosen = dict(zip(options[::2], options[1::2], strict=True))
    dataset = open_dataset(chosen["--dataset"], Path(chosen["--data-root"]), chosen["--split"])
    listed = folder / f"{images}.txt"
    listed.write_text("".join(f"{item.id}\n" for item in dataset.items[:images]))
    chosen |= {"--split": str(listed), "--out": str(folder / str(images))}
    words = [word for pair in chosen.items() for word in pair]
    command = [sys.executable, "-m", "wsssfast", "export-cams", *words]
    process = os.spawnv(os.P_NOWAIT, sys.executable, command)
    _, status, used = os.wait4(process, 0)
    if status:
        sys.exit(f"the export of {images} images failed")
    return used.ru_maxrss * 1024, used.ru_utime + used.ru_stime


def main() -> None:
    cut = sys.argv.index("--")
    counts, options = [int(word) for word in sys.argv[1:cut]], sys.argv[cut + 1 :]
    with tempfile.TemporaryDirectory() as folder:
        found = {count: export(count, options, Path(folder)) for count in counts}
    peaks = {str(count): peak for count, (peak, _) in found.items()}
    print(json.dumps({
        "benchmark": "export_memory", **machine("cpu"),
        "options": [Path(word).name for word in options[4:]],  # no places of this machine
        "peak_bytes": peaks,
        "largest_over_smallest": round(max(peaks.values()) / min(peaks.values()), 4),
        "cpu_seconds": {str(count): round(s, 1) for count, (_, s) in found.items()},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
