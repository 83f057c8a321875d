"""The embedded data set: deterministic scenes with pixel masks, made on the fly, no download.

Each of eight classes has a shape and a texture of its own; colours, size, place and turn are
random and say nothing. Objects hide one another, and plain blobs and bars of no class lie about.
Scene i of a split depends on (split, i) alone: numpy's RandomState, whose streams are frozen,
seeded by a checksum of the two.
"""

import csv
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsssfast.data.dataset import IGNORE, Dataset, Item, Mask
from wsssfast.errors import WsssError

CLASS_NAMES = ("disc", "square", "triangle", "ring", "cross", "star", "capsule", "crescent")
SPLITS = {"train": 600, "val": 200}
SIZES = ((128, 128), (112, 144), (144, 112), (120, 136), (136, 120))  # (height, width)
_LEAST_PIXELS = 60  # an object of which less is seen gives no label
Field = NDArray[np.float64]


def open_synthetic(split: str | None = None) -> Dataset:
    """The embedded scenes.

    Args:
        split: train (600 scenes, the default) or val (200), or either with another count:
            `train:50`.

    Raises:
        WsssError: another split.
    """
    name, _, count_text = (split or "train").partition(":")
    if name not in SPLITS or (count_text and not count_text.isdecimal()):
        raise WsssError(
            f"Expected the split train or val of the synthetic data set, found {split!r}.",
            "A count may follow: train:50.",
        )
    count = int(count_text) if count_text else SPLITS[name]
    if count > 100_000:
        raise WsssError(f"Expected at most 100000 scenes, found {count}.")
    items = tuple(Item(f"{name}_{index:05d}", labels_of(name, index)) for index in range(count))
    return Dataset(
        name="synthetic",
        split=f"{name}:{count}",
        class_names=CLASS_NAMES,
        items=items,
        image_size=_size,
        load_image=_image,
        load_mask=_mask,
        label_source="embedded",
    )


def scene(split: str, index: int) -> tuple[NDArray[np.uint8], Mask]:
    """One scene.

    Returns:
        image uint8 [H, W, 3] and mask uint8 [H, W] (0 background, 1..8, and 255 on a one-pixel
        seam around objects, as VOC has it).
    """
    rng = np.random.RandomState(zlib.crc32(f"{split}-{index}".encode()))
    height, width = SIZES[rng.randint(len(SIZES))]
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float64)
    image = _background(rng, ys, xs)
    owner = np.zeros((height, width), dtype=np.int64)  # 0 none, else the number of the object
    classes = [0]
    objects = rng.randint(1, 4)
    things = rng.permutation([False] * rng.randint(2, 6) + [True] * objects)
    for is_object in things:
        radius = min(height, width) * rng.uniform(0.15, 0.32)
        cy, cx = rng.uniform(0.1, 0.9) * height, rng.uniform(0.1, 0.9) * width
        turn = rng.uniform(0, 2 * np.pi)
        u = ((xs - cx) * np.cos(turn) + (ys - cy) * np.sin(turn)) / radius
        v = ((ys - cy) * np.cos(turn) - (xs - cx) * np.sin(turn)) / radius
        dark, light = _colours(rng)
        if not is_object:
            stretch = rng.uniform(1.0, 4.0)
            inside = (u / 0.6) ** 2 + (v * stretch) ** 2 < 1
            image[inside] = dark + rng.uniform(0, 1) * (light - dark)
            owner[inside] = 0
            continue
        label = rng.randint(len(CLASS_NAMES))
        inside = _shape(label, u, v)
        weight = _texture(label, u, v, rng)[..., None]
        painted = dark + weight * (light - dark)
        image[inside] = painted[inside]
        classes.append(label + 1)
        owner[inside] = len(classes) - 1
    image += rng.normal(0, 6, image.shape)
    seen = np.bincount(owner.ravel(), minlength=len(classes))
    mask = np.array([c if n >= _LEAST_PIXELS else 0 for c, n in zip(classes, seen, strict=True)])
    mask = mask[owner].astype(np.uint8)
    edge = np.zeros_like(mask, dtype=bool)
    edge[1:] |= mask[1:] != mask[:-1]
    edge[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    mask[edge] = IGNORE
    return np.clip(image, 0, 255).astype(np.uint8), mask


def labels_of(split: str, index: int) -> tuple[int, ...]:
    """Sorted 0-based classes seen in a scene; empty where everything is hidden."""
    found = np.unique(_cached(split, index)[1])
    return tuple(int(c) - 1 for c in found if c not in (0, IGNORE))


def write_folder(dataset: Dataset, out: Path) -> None:
    """Write a data set with masks in the layout that `--dataset folder` reads.

    Raises:
        WsssError: `out` holds something already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise WsssError(f"Expected an empty or new folder, found files at {out}.")
    for name in ("images", "masks"):
        (out / name).mkdir(parents=True, exist_ok=True)
    rows = [("image", "labels")]
    for item in dataset:
        dataset.load_image(item).save(out / "images" / f"{item.id}.png")
        mask = dataset.load_mask(item)
        if mask is not None:
            Image.fromarray(mask).save(out / "masks" / f"{item.id}.png")
        rows.append((f"{item.id}.png", ";".join(dataset.class_names[c] for c in item.labels)))
    with (out / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    (out / "classes.txt").write_text("\n".join(dataset.class_names) + "\n", encoding="utf-8")


@lru_cache(maxsize=1024)
def _cached(split: str, index: int) -> tuple[NDArray[np.uint8], Mask]:
    image, mask = scene(split, index)
    image.flags.writeable = mask.flags.writeable = False
    return image, mask


def _of(item: Item) -> tuple[NDArray[np.uint8], Mask]:
    split, _, index = item.id.rpartition("_")
    return _cached(split, int(index))


def _image(item: Item) -> Image.Image:
    return Image.fromarray(_of(item)[0])


def _mask(item: Item) -> Mask:
    return _of(item)[1]


def _size(item: Item) -> tuple[int, int]:
    height, width = _of(item)[1].shape
    return width, height


def _colours(rng: np.random.RandomState) -> tuple[Field, Field]:
    """A dark and a light colour, far enough apart for a texture to be seen."""
    return rng.uniform(10, 110, 3), rng.uniform(150, 250, 3)


def _background(rng: np.random.RandomState, ys: Field, xs: Field) -> Field:
    image = np.full((*ys.shape, 3), 0.0) + rng.uniform(70, 180, 3)
    for _ in range(5):
        angle, period = rng.uniform(0, np.pi), rng.uniform(30, 120)
        wave = np.sin((xs * np.cos(angle) + ys * np.sin(angle)) * 2 * np.pi / period
                      + rng.uniform(0, 2 * np.pi))  # fmt: skip
        image += wave[..., None] * rng.uniform(-18, 18, 3)
    return image


def _shape(label: int, u: Field, v: Field) -> NDArray[np.bool_]:
    """Where an object of the class is, in its own coordinates (radius 1)."""
    r: Field = np.hypot(u, v)
    angle: Field = np.arctan2(v, u)
    inside: NDArray[np.bool_]
    match CLASS_NAMES[label]:
        case "disc":
            inside = r < 0.85
        case "square":
            inside = np.maximum(np.abs(u), np.abs(v)) < 0.78
        case "triangle":
            inside = np.maximum(np.abs(u) * 0.87 + v * 0.5, -v) < 0.52
        case "ring":
            inside = (r < 0.95) & (r > 0.45)
        case "cross":
            inside = (np.minimum(np.abs(u), np.abs(v)) < 0.3) & (
                np.maximum(np.abs(u), np.abs(v)) < 0.95
            )
        case "star":
            inside = r < 0.68 + 0.32 * np.cos(5 * angle)
        case "capsule":
            inside = np.hypot(np.maximum(np.abs(u) - 0.6, 0), v) < 0.4
        case _:
            inside = (r < 0.95) & (np.hypot(u - 0.5, v) > 0.65)
    return inside


def _texture(label: int, u: Field, v: Field, rng: np.random.RandomState) -> Field:
    """0 (dark) to 1 (light) over the object, in its own coordinates."""
    phase = rng.uniform(0, 2 * np.pi)
    r, angle = np.hypot(u, v), np.arctan2(v, u)
    match CLASS_NAMES[label]:
        case "disc":
            value = np.sin(11 * u + phase)
        case "square":
            value = np.sign(np.sin(9 * u + phase) * np.sin(9 * v + phase))
        case "triangle":
            value = np.cos(14 * u + phase) + np.cos(14 * v) - 0.8
        case "ring":
            value = np.sin(10 * angle + phase)
        case "cross":
            value = np.sin(13 * v + 2.2 * np.sin(7 * u + phase))
        case "star":
            value = np.sin(16 * r + phase)
        case "capsule":
            value = np.maximum(np.sin(15 * (u + v) + phase), np.sin(15 * (u - v))) - 0.3
        case _:
            value = np.sign(rng.normal(0, 1, u.shape))
    return np.clip(0.5 + 0.8 * value, 0, 1)
