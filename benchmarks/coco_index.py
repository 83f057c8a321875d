"""Seconds and memory to open COCO at its full size; ends in one JSON line.

Writes instances of the size of instances_train2014.json (82,783 images, 702 of them without
annotation, 600,000 annotations, about 450 MB) and empty image files into a temporary folder. Each
way of opening them runs in processes of its own. Imports are in the peak memory, which is the
process's, and in `process_seconds`; not in `seconds`. The peers: json.load of the whole file, with
which `open_coco` once began, and pycocotools' COCO class. The least of several runs is told, since
others may use the machine too.

    python benchmarks/coco_index.py --runs 3
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np

IMAGES, BARE, ANNOTATIONS = 82_783, 702, 600_000
CATEGORIES = sorted({*range(1, 91)} - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})  # COCO's ids
SHAPES = 20_000  # different ones, drawn again and again
SPLIT = "train2014"


def generate(root: Path, seed: int) -> Path:
    """Write the data set: numbers a polygon, crowds and spelling as in COCO's own files."""
    random = np.random.RandomState(seed)
    (root / "annotations").mkdir()
    (root / SPLIT).mkdir()
    ids = np.sort(random.choice(581_922, IMAGES, replace=False)) + 1
    names = [f"COCO_{SPLIT}_{number:012d}.jpg" for number in ids]
    for name in names:
        (root / SPLIT / name).touch()
    shapes = [_shape(random) for _ in range(SHAPES)]
    annotated = random.permutation(ids)[BARE:]
    more = random.choice(annotated, ANNOTATIONS - len(annotated))
    owners = random.permutation(np.concatenate([annotated, more]))
    drawn = random.randint(0, SHAPES, ANNOTATIONS)
    kinds = (owners + 17 * random.randint(0, 4, ANNOTATIONS)) % 80  # some three an image
    categories = np.array(CATEGORIES)[kinds]
    path = root / "annotations" / f"instances_{SPLIT}.json"
    with path.open("w") as file:
        file.write('{"info": {"description": "generated", "year": 2014}, "images": [')
        for n, (number, name) in enumerate(zip(ids, names, strict=True)):
            file.write(", " * (n > 0) + json.dumps(_image(int(number), name)))
        file.write('], "licenses": [], "annotations": [')
        for n, (owner, shape, category) in enumerate(zip(owners, drawn, categories, strict=True)):
            file.write(", " * (n > 0) + shapes[shape] % (owner, category, n + 1))
        named = [{"supercategory": "thing", "id": c, "name": f"class {c}"} for c in CATEGORIES]
        file.write(f'], "categories": {json.dumps(named)}}}')
    return path


def _image(number: int, name: str) -> dict[str, object]:
    return {
        "license": 5, "file_name": name, "height": 480, "width": 640,
        "coco_url": f"http://images.cocodataset.org/{SPLIT}/{name}",
        "date_captured": "2013-11-14 16:28:13", "id": number,
        "flickr_url": "http://farm4.staticflickr.com/3153/2970773875_164f0c0b83_z.jpg",
    }  # fmt: skip


def _shape(random: np.random.RandomState) -> str:
    """An annotation that lacks its image, category and id: 1.2 % crowds, else one polygon."""
    left, top = random.uniform(0, 500), random.uniform(0, 350)
    width, height = random.uniform(5, 140, 2)
    if crowd := random.random_sample() < 0.012:
        runs = random.multinomial(480 * 640, random.dirichlet(np.ones(1000)))
        segmentation: object = {"counts": runs.tolist(), "size": [480, 640]}
    else:
        points = int(np.clip(random.lognormal(3.16, 0.8), 4, 500))
        angles = np.sort(random.uniform(0, 2 * np.pi, points))
        x = left + width * (1 + np.cos(angles)) / 2
        y = top + height * (1 + np.sin(angles)) / 2
        segmentation = [np.stack([x, y], 1).ravel().round(2).tolist()]
    box = [round(float(value), 2) for value in (left, top, width, height)]
    start = {"segmentation": segmentation, "area": 0.7853 * width * height, "iscrowd": int(crowd)}
    return f'{json.dumps(start)[:-1]}, "image_id": %d, "bbox": {box}, "category_id": %d, "id": %d}}'


def by_wsssfast(root: Path) -> int:
    from wsssfast.data.coco import open_coco

    return len(open_coco(root, SPLIT))


def by_json(root: Path) -> int:
    with (root / "annotations" / f"instances_{SPLIT}.json").open("rb") as file:
        found = json.load(file)
    return len({annotation["image_id"] for annotation in found["annotations"]})


def by_pycocotools(root: Path) -> int:
    from pycocotools.coco import COCO

    return len(COCO(root / "annotations" / f"instances_{SPLIT}.json").imgToAnns)


WAYS: dict[str, Callable[[Path], int]] = {
    "wsssfast": by_wsssfast, "json.load": by_json, "pycocotools.COCO": by_pycocotools,
}  # fmt: skip


def measure(way: str, root: Path, cache: Path) -> dict[str, float]:
    """Seconds of the opening, seconds of its whole process, and the process's peak memory."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--open", way, "--root", root],
        check=True, text=True, stdout=subprocess.PIPE,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    )  # fmt: skip
    whole = time.perf_counter() - start
    return {**json.loads(done.stdout.splitlines()[-1]), "process_seconds": round(whole, 3)}


def open_once(way: str, root: Path) -> None:
    """What one of the processes does."""
    import_module("wsssfast.data.coco")
    import_module("pycocotools.coco")
    start = time.perf_counter()
    images = WAYS[way](root)
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text()  # ru_maxrss begins with what the parent had
    peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1])
    if images != IMAGES - BARE:
        sys.exit(f"Expected {IMAGES - BARE} annotated images, found {images}.")
    print(json.dumps({"seconds": round(seconds, 3), "peak_mb": round(peak * 1024 / 1e6)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--runs", type=int, default=3, help="of each way; the least of each figure is told"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", type=Path, help="keep the generated data set in this new folder")
    parser.add_argument("--open", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.open:
        open_once(args.open, args.root)
        return
    from wsssfast.bench.report import machine

    with tempfile.TemporaryDirectory() as folder:
        root = args.root or Path(folder) / "coco"
        root.mkdir()
        path = generate(root, args.seed)
        runs: dict[str, list[dict[str, float]]] = {}
        for turn in range(args.runs):
            cache = Path(folder) / f"cache-{turn}"
            for name, way in [
                ("first", "wsssfast"), ("from the cache", "wsssfast"),
                ("json.load", "json.load"), ("pycocotools.COCO", "pycocotools.COCO"),
            ]:  # fmt: skip
                runs.setdefault(name, []).append(measure(way, root, cache))
        size = path.stat().st_size
    print(json.dumps({
        "benchmark": "coco_index", **machine("cpu"), "images": IMAGES, "annotations": ANNOTATIONS,
        "file_mb": round(size / 1e6), "runs": args.runs,
        "ways": {
            name: {key: min(row[key] for row in rows) for key in rows[0]}
            for name, rows in runs.items()
        },
    }))  # fmt: skip


if __name__ == "__main__":
    main()
