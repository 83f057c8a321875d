"""The parts of `gpu.sh` that are Python: what is missing, the export from JPEG, one table.

Needs nothing beyond what `wsssfast` needs; `missing` and `table` need Python alone.

    python benchmarks/gpu.py missing
    python benchmarks/gpu.py export --data DIR --dataset folder --json export.json
    python benchmarks/gpu.py table PARTS/*.json --json kernels.json
"""

import argparse
import json
import re
import tempfile
import time
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OURS = "wsssfast"
FLOOR = "SDPA, no attention"
FORWARD = {  # column -> contender
    "ours": OURS,
    "capture": "wsssfast, capture only",
    "recompute": "SDPA + recompute, top-k",
    "stacked": "attention stacked, top-k",
    "floor comp.": f"{FLOOR}, compiled",
    "stacked comp.": "attention stacked, top-k, compiled",
}


def missing() -> None:
    """Say which dependencies are not installed, and what cannot run without them."""
    wants = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = [re.split(r"[^A-Za-z0-9_.-]", want)[0] for want in wants]
    gone = [name for name in names if not _version(name)]
    uses = {"defusedxml": "--dataset voc", "pycocotools": "--dataset coco", "tensorboard": "train"}
    for name in gone:
        print(f"missing: {name} (needed by {uses.get(name, 'wsssfast itself')})")
    print(" ".join(f"{name} {_version(name)}" for name in names if name not in gone))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def export(
    data: Path | None, kind: str, split: str | None, labels: Path | None, batch: int
) -> dict:
    """Images/s of `export-cams` from image files to shards, network of random weights.

    Twice by precision: the first run compiles kernels, the second does not.
    """
    import os

    import torch

    from wsssfast.bench.forward import random_model
    from wsssfast.bench.report import machine
    from wsssfast.cam_options import CamOptions
    from wsssfast.data import open_dataset
    from wsssfast.export import export_cams
    from wsssfast.models.classifier_config import ClassifierConfig

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dataset = open_dataset(kind, data, split, labels)
    config = ClassifierConfig.for_backbone("deit_small_patch16_224", dataset.class_names, 224)
    model = random_model(config).to(device)
    rows = []
    for precision in ("fp32", "bf16") if device == "cuda" else ("fp32",):
        for run in ("first", "second"):
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                done = export_cams(
                    model, dataset, Path(folder), CamOptions(precision=precision),
                    batch_size=batch, decode_workers=os.cpu_count() or 1,
                )  # fmt: skip
                seconds = time.perf_counter() - start
            rows.append({"precision": precision, "run": run, "images": done.images,
                         "unreadable": len(done.failed), "seconds": seconds,
                         "images_per_second": done.images / seconds})  # fmt: skip
    found = {"benchmark": "export", **machine(device), "dataset": kind, "batch": batch}
    return {**found, "flip": True, "scales": [1.0], "rows": rows}


def table(parts: list[dict]) -> None:
    """Print everything, slower contenders and those that ran out of memory like the others."""
    kernels = [row for part in parts if part["benchmark"] == "kernels" for row in part["rows"]]
    lines = []
    for key, found in _cases(kernels, forward=True).items():
        floor = found.get(FLOOR) or found.get("all")
        held = [found.get(FORWARD[name], {}).get("peak_mb") for name in ("ours", "stacked")]
        lines.append(
            [*map(str, key[1:]), _cell(floor, "median_ms"),
             *(_cell(found.get(name), "ratio") for name in FORWARD.values()),
             *("" if megabytes is None else f"{megabytes:.0f}" for megabytes in held)]
        )  # fmt: skip
    header = ["C", "N", "B", "", "floor ms", *FORWARD, "ours MB", "stacked MB"]
    _print(f"Forward: times the floor ({FLOOR})", header, lines)
    lines = []
    for key, found in _cases(kernels, forward=False).items():
        ours = found.get(OURS) or found.get("all")
        peer = found.get(ours["baseline"]) if ours else None
        percent = ours and ours["percent_of_peak"]
        lines.append(
            [key[0], *map(str, key[2:]), _cell(peer, "median_ms"), _cell(ours, "median_ms"),
             _cell(ours, "ratio"), f"{percent:.1f} {ours['bound']}" if percent else ""]
        )  # fmt: skip
    header = ["", "N", "B", "", "peer ms", "ours ms", "of peer", "% of peak"]
    _print("Operations", header, lines)
    for part in parts:
        for row in part["rows"] if part["benchmark"] == "export" else ():
            print(f"export-cams {row['precision']}, {row['run']} run: {row['images']} images, "
                  f"{row['images_per_second']:.1f}/s with flip")  # fmt: skip
    print("; ".join(sorted({part["device"] for part in parts})) or "Nothing was measured.")


def _cases(rows: list[dict], forward: bool) -> dict[tuple, dict[str, dict]]:
    """Case -> contender -> row; of what was measured twice, the first."""
    cases: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        if (row["what"] == "forward") is forward:
            key = (row["what"], row["classes"], row["patches"], row["batch"], row["precision"])
            cases.setdefault(key, {}).setdefault(row["contender"], row)
    return cases


def _cell(row: dict | None, key: str) -> str:
    """A number, or why there is none."""
    if row is None:
        return ""
    if row[key] is None:
        short = {"out of memory": "no memory", "left out": "left out", "failed": "FAILED"}
        return next((text for note, text in short.items() if row["note"].startswith(note)), "?")
    return f"{row[key]:.3f}" if key == "ratio" else f"{row[key]:.4g}"


def _print(title: str, header: list[str], lines: list[list[str]]) -> None:
    if not lines:
        return
    print(title)
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    for first, *others in (header, *lines):
        cells = (f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))
        print("  ".join((f"{first:<{widths[0]}}", *cells)).rstrip())
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("missing")
    exporting = commands.add_parser("export")
    exporting.add_argument("--data", type=Path)
    exporting.add_argument("--dataset", default="folder")
    exporting.add_argument("--split")
    exporting.add_argument("--labels", type=Path)
    exporting.add_argument("--batch-size", type=int, default=16)
    exporting.add_argument("--json", type=Path, required=True)
    showing = commands.add_parser("table")
    showing.add_argument("parts", nargs="*", type=Path)
    showing.add_argument("--json", type=Path, help="all parts in one file")
    args = parser.parse_args()
    if args.command == "missing":
        missing()
    elif args.command == "export":
        found = export(args.data, args.dataset, args.split, args.labels, args.batch_size)
        args.json.write_text(json.dumps(found) + "\n")
    else:
        parts = [json.loads(path.read_text()) for path in args.parts if path.exists()]
        if args.json:
            args.json.write_text(json.dumps(parts) + "\n")
        table(parts)


if __name__ == "__main__":
    main()
