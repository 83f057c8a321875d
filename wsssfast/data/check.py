"""Validate and count a data set: every image, label and mask is read once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from wsssfast.data.dataset import IGNORE, Dataset, Item
from wsssfast.errors import BadFile, listing


@dataclass
class DatasetReport:
    """What is in a data set.

    Attributes:
        images: number of images.
        masks: number of images with a mask.
        label_counts: class -> images with that label.
        mask_counts: class -> images whose mask holds it.
        multi_label: images with more than one label.
        unlabelled: images with no label.
        disagreements: ids of images with a mask whose classes are not the labels (boxes against
            masks: normal in VOC).
        with_ignore: masks that hold 255.
        sizes: smallest and largest width and height of the images.
        unreadable: id -> reason.
        problems: one line for each mask that does not fit.
        notes: one line for each thing that looks like a mistake, though it stops nothing.
    """

    images: int = 0
    masks: int = 0
    label_counts: dict[str, int] = field(default_factory=dict)
    mask_counts: dict[str, int] = field(default_factory=dict)
    multi_label: int = 0
    unlabelled: int = 0
    disagreements: list[str] = field(default_factory=list)
    with_ignore: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_dataset(
    dataset: Dataset,
    *,
    decode: bool = True,
    workers: int = 2,
    progress: Callable[[int], None] = lambda images: None,
) -> DatasetReport:
    """Count a data set, and find what would stop or spoil a run.

    Args:
        dataset: an opened index.
        decode: whether to decode every image; else only headers and masks are read.
        workers: threads.
        progress: called with 1 an image.
    """
    names = dataset.class_names
    report = DatasetReport(
        images=len(dataset),
        label_counts=dict.fromkeys(names, 0),
        mask_counts=dict.fromkeys(names, 0),
    )
    blank: list[str] = []
    with ThreadPoolExecutor(workers) as pool:
        for item, looked in zip(
            dataset, pool.map(lambda i: _look(dataset, i, decode), dataset), strict=True
        ):
            size, flat, present, problem, unreadable = looked
            if flat:
                blank.append(item.id)
            for label in item.labels:
                report.label_counts[names[label]] += 1
            report.multi_label += len(item.labels) > 1
            report.unlabelled += not item.labels
            if unreadable:
                report.unreadable[item.id] = unreadable
            if problem:
                report.problems.append(f"{item.id}: {problem}")
            if size is not None:
                for key, value in zip(("width", "height"), size, strict=True):
                    report.sizes[f"min_{key}"] = min(report.sizes.get(f"min_{key}", value), value)
                    report.sizes[f"max_{key}"] = max(report.sizes.get(f"max_{key}", value), value)
            if present is not None:
                report.masks += 1
                classes = {int(v) - 1 for v in present if v not in (0, IGNORE)}
                report.with_ignore += IGNORE in present
                if classes != set(item.labels):
                    report.disagreements.append(item.id)
                for label in classes & set(range(len(names))):
                    report.mask_counts[names[label]] += 1
            progress(1)
    report.notes = _notes(dataset, report.label_counts)
    if blank:
        report.notes.append(
            f"{len(blank)} of the images look black, white or of one shade all over, as 12 bits "
            f"stored in 16 do: {listing(blank, 8)}"
        )
    return report


def _notes(dataset: Dataset, counts: dict[str, int]) -> list[str]:
    """What looks like a mistake in names, labels and files."""
    notes = []
    if dataset.ignored:
        notes.append(f"not read as images: {listing(dataset.ignored, 8)}")
    folded: dict[str, str] = {}
    for name in dataset.class_names:
        other = folded.setdefault(name.casefold(), name)
        if other != name:
            notes.append(f"the classes {other!r} and {name!r} differ in case only")
        if "," in name:
            notes.append(f"the class {name!r} has a comma: labels are separated by ;")
    rare = [name for name, count in counts.items() if count == 1]
    if rare and len(dataset) > len(rare):
        notes.append(f"a single image has the class {listing(rare, 8)}: check how it is spelled")
    absent = [name for name, count in counts.items() if count == 0]
    if absent and len(absent) < len(counts):
        notes.append(f"no image has the class {listing(absent, 8)}")
    return notes


def _look(
    dataset: Dataset, item: Item, decode: bool
) -> tuple[tuple[int, int] | None, bool, set[int] | None, str, str]:
    """(width, height), whether it is blank, mask values, what does not fit, what is unreadable."""
    size = present = None
    problem, unreadable, blank = "", "", False
    try:
        if decode:
            image = dataset.load_image(item)
            size, blank = image.size, _is_blank(image)
        else:
            size = dataset.image_size(item)
    except BadFile as error:
        unreadable = str(error)
    try:
        mask = dataset.load_mask(item)
    except BadFile as error:
        return size, blank, None, problem, unreadable or f"mask: {error}"
    if mask is not None:
        present = set(np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist())
        height, width = mask.shape
        if size is not None and size != (width, height):
            problem = f"image of {size[0]}x{size[1]} pixels, mask of {width}x{height}"
        beyond = [v for v in present if v != IGNORE and v > len(dataset.class_names)]
        if beyond:
            problem = (
                f"mask value {max(beyond)}, expected at most {len(dataset.class_names)} or 255"
            )
    return size, blank, present, problem, unreadable


def _is_blank(image: Image.Image) -> bool:
    """Whether 99 % of the pixels of an RGB image lie within 16 of 256 steps."""
    counts = np.array(image.convert("L").histogram())
    within = np.convolve(counts, np.ones(16, dtype=np.int64))
    return bool(within.max() >= 0.99 * counts.sum())
