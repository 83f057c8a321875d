"""Image-level labels from a file: JSON, CSV, or the field's pickled `cls_labels.npy`."""

import csv
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wsssfast.data.dataset import NoLabels, class_name, one_spelling
from wsssfast.data.images import EXTENSIONS
from wsssfast.data.safe_pickle import read_npy
from wsssfast.errors import WsssError, listing
from wsssfast.parse import json_of

Labels = dict[str, tuple[int, ...]]
_VOC_CLASSES, _COCO_CLASSES = 20, 80
_HEADER = re.compile(r'\s*"?image"?\s*([,;\t])\s*"?labels"?\s*(?:\1|$)', re.IGNORECASE)
_NUMBERS = (int, float, np.number, np.bool_)


def read_labels(path: Path, class_names: tuple[str, ...]) -> Labels:
    """Labels of each image id in a labels file.

    - `.json`: {id: [class names or 0-based indices]}
    - `.csv`: see `read_csv`
    - `.npy`: a pickled {id: multi-hot array of C} (MCTformer, PSA, IRN); read without running it

    A file extension of an image (`x.jpg`) is dropped from the ids of CSV files.

    Returns:
        id -> sorted 0-based class indices.

    Raises:
        WsssError: unreadable, another structure, or an unknown class.
    """
    if not path.is_file():
        raise WsssError(f"Expected a labels file at {path}, found none.", "Check --labels.")
    if path.suffix == ".npy":
        return _from_vectors(read_npy(path), path, len(class_names))
    if path.suffix == ".json":
        return _from_names(_read_json(path), path, class_names)
    if path.suffix == ".csv":
        rows: dict[str, list[str]] = {}
        for name, names in read_csv(path).items():
            image_id = Path(name).stem if Path(name).suffix.lower() in EXTENSIONS else name
            if image_id in rows:
                raise WsssError(
                    f"Found {image_id[:80]!r} in two rows of {path}.",
                    "Leave one, with all labels of the image separated by ;.",
                )
            rows[image_id] = names
        return _from_names(rows, path, class_names)
    raise WsssError(f"Expected a .json, .csv or .npy labels file, found {path.name}.")


def read_csv(path: Path) -> dict[str, list[str]]:
    """Rows of a `image,labels` CSV as {image: [class names]}, in file order.

    Classes are separated by `;`. Columns are separated by a comma, or as spreadsheets of other
    countries write them, by `;` (several labels in quotes) or a tab. Rows without anything are
    left out.

    Raises:
        WsssError: another header, a row without a name, or an image twice.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            found = _HEADER.match(first)
            if not found:
                raise WsssError(
                    f"Expected the header image,labels in {path}, found {first.strip()[:80]!r}.",
                    "Columns are separated by a comma, the labels of an image by ;, as in "
                    "cat1.jpg,cat;sofa.",
                )
            others = first.count(found[1]) - 1
            header = ["image", "labels", *(f"column {n}" for n in range(others))]
            reader = csv.DictReader(file, header, delimiter=found[1])
            rows: dict[str, list[str]] = {}
            for row in reader:
                if not any(row.values()):
                    continue
                name = (row["image"] or "").strip()
                if not name or name in rows:
                    what = "an image twice" if name else "a row without an image"
                    raise WsssError(
                        f"Found {what} in {path}, line {reader.line_num + 1}: {name[:80]!r}.",
                        "Leave one row for each image, with all its labels separated by ;.",
                    )
                if row.get(None):
                    several = '"cat;dog"' if found[1] == ";" else "cat;dog"
                    raise WsssError(
                        f"Expected {len(header)} columns in {path}, found more in line "
                        f"{reader.line_num + 1}.",
                        f"Write {name[:40]}{found[1]}{several} for an image of several labels.",
                    )
                names = map(class_name, (row["labels"] or "").split(";"))
                rows[name] = [one for one in names if one]
            return rows
    except UnicodeDecodeError as error:
        raise WsssError(
            f"Expected a CSV file in UTF-8 at {path}, found another encoding.",
            "Save it again as CSV UTF-8.",
        ) from error
    except (OSError, csv.Error) as error:
        raise WsssError(f"Expected a CSV file at {path}: {error}") from error


def match_labels(labels: Mapping[str, tuple[int, ...]], ids: Iterable[str], known: Iterable[str],
                 source: Path) -> Labels:  # fmt: skip
    """The labels of `ids`, after checking that file and data set speak of the same images.

    Args:
        labels: what the file says.
        ids: images of the split.
        known: every image that the data set has, in the split or not.
        source: the file, for messages.

    Raises:
        WsssError: an image without label, or a label of no image.
    """
    wanted = list(ids)
    missing = [i for i in wanted if i not in labels]
    if missing:
        folded = {name.casefold(): name for name in labels}
        near = next((folded[i.casefold()] for i in missing if i.casefold() in folded), None)
        raise NoLabels(
            f"Expected labels for every image, found none for {listing(missing)} in {source}"
            + (f", but for {near}." if near else "."),
            "Add them to the labels file (an empty list says: none of the classes).",
        )
    unknown = sorted(set(labels) - set(known))
    if unknown:
        raise WsssError(
            f"Expected labels of images of this data set, found the unknown id {listing(unknown)} "
            f"in {source}.",
            "Put their images where the others are (not in folders below), or remove these rows.",
        )
    return {i: labels[i] for i in wanted}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json_of(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WsssError(f"Expected JSON at {path}: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(v, list) for v in found.values()):
        raise WsssError(f"Expected {{id: [classes]}} in {path}, found another structure.")
    return found


def _from_names(rows: Mapping[str, list[Any]], path: Path, class_names: tuple[str, ...]) -> Labels:
    index = {name: c for c, name in enumerate(class_names)}
    labels: Labels = {}
    for key, names in rows.items():
        found = set()
        for given in names:
            name: Any = class_name(given) if isinstance(given, str) else given
            is_index = isinstance(name, int) and not isinstance(name, bool)
            if is_index and 0 <= name < len(class_names):
                found.add(name)
            elif isinstance(name, str) and name in index:
                found.add(index[name])
            else:
                raise WsssError(
                    f"Unknown class {str(given)[:60]!r} of image {key[:60]!r} in {path}.",
                    f"Expected one of {listing(class_names, 8)}.",
                )
        labels[one_spelling(key)] = tuple(sorted(found))
    return labels


def _from_vectors(found: Any, path: Path, num_classes: int) -> Labels:
    if not isinstance(found, dict):
        raise WsssError(f"Expected {{id: multi-hot array}} in {path}, found another structure.")
    labels: Labels = {}
    for given, value in found.items():
        key = _id_of(given, num_classes)
        flat = isinstance(value, (list, tuple)) and all(isinstance(v, _NUMBERS) for v in value)
        vector = np.asarray(value if flat or isinstance(value, np.ndarray) else None)
        fits = vector.shape == (num_classes,) and vector.dtype.kind in "biuf"
        if fits and not np.isin(vector, (0, 1)).all():
            raise WsssError(
                f"Expected 0 and 1 for each image in {path}, found others for {key[:60]!r}.",
                "Make it multi-hot: 1 where the class is in the image.",
            )
        if not fits:
            raise WsssError(
                f"Expected {num_classes} numbers for each image in {path}, found "
                f"{vector.dtype} {list(vector.shape)} for {key[:60]!r}.",
                "Is this the labels file of another data set?",
            )
        labels[key] = tuple(int(c) for c in np.flatnonzero(vector))
    return labels


def _id_of(key: Any, num_classes: int) -> str:
    """The id that a key says: IRN writes 2007_000033 of VOC, and COCO's ids, as integers.

    Raises:
        WsssError: neither text nor such a number.
    """
    if isinstance(key, str):
        return one_spelling(key)
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        digits = str(int(key))
        if num_classes == _VOC_CLASSES and len(digits) == 10:
            return f"{digits[:4]}_{digits[4:]}"
        if num_classes == _COCO_CLASSES and digits.isdigit():
            return digits.zfill(12)
    raise WsssError(
        f"Expected the ids of images as keys, found {str(key)[:60]!r} ({type(key).__name__})."
    )
