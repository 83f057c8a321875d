"""Peak memory and images/s of an export by the number of images; ends in one JSON line.

Each export is a process of its own, by the command line; the peak is what the system says of it or
of the largest process that it started.

    python benchmarks/export_memory.py export-cams 500 3800 -- --dataset voc \\
        --data-root VOCdevkit/VOC2012 --split train_aug+val --checkpoint classifier.safetensors \\
        --scales 0.5
    python benchmarks/export_memory.py export-labels 500 3800 -- (the same and) --recipe mctformer
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from wsssfast.bench.report import machine
from wsssfast.data import open_dataset


def export(command: str, images: int, options: list[str], folder: Path) -> tuple[int, float, float]:
    """(peak in bytes, seconds, seconds of processor time) of an export of the first images."""
    chosen = dict(zip(options[::2], options[1::2], strict=True))
    dataset = open_dataset(chosen["--dataset"], Path(chosen["--data-root"]), chosen["--split"])
    listed = folder / f"{images}.txt"
    listed.write_text("".join(f"{item.id}\n" for item in dataset.items[:images]))
    chosen |= {"--split": str(listed), "--out": str(folder / str(images))}
    words = [word for pair in chosen.items() for word in pair]
    begin = time.perf_counter()
    whole = [sys.executable, "-m", "wsssfast", command, *words]
    process = os.spawnv(os.P_NOWAIT, sys.executable, whole)
    _, status, used = os.wait4(process, 0)
    if status:
        sys.exit(f"the export of {images} images failed")
    seconds = time.perf_counter() - begin
    return used.ru_maxrss * 1024, seconds, used.ru_utime + used.ru_stime


def main() -> None:
    cut = sys.argv.index("--")
    command, counts = sys.argv[1], [int(word) for word in sys.argv[2:cut]]
    options = sys.argv[cut + 1 :]
    with tempfile.TemporaryDirectory() as folder:
        found = {count: export(command, count, options, Path(folder)) for count in counts}
    peaks = {str(count): peak for count, (peak, _, _) in found.items()}
    print(json.dumps({
        "benchmark": "export_memory", **machine("cpu"),
        "command": command,
        "options": [Path(word).name for word in options[4:]],  # no places of this machine
        "peak_bytes": peaks,
        "largest_over_smallest": round(max(peaks.values()) / min(peaks.values()), 4),
        "images_per_second": {str(n): round(n / wall, 3) for n, (_, wall, _) in found.items()},
        "cpu_seconds": {str(n): round(cpu, 1) for n, (_, _, cpu) in found.items()},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
