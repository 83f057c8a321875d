"""A user's own data: `images/` and `labels.csv`, optionally `classes.txt` and `masks/`."""

from pathlib import Path

from wsssfast.data.dataset import (
    Dataset,
    Item,
    NoLabels,
    class_name,
    one_spelling,
    read_ids,
    read_lines,
    require_folder,
)
from wsssfast.data.images import EXTENSIONS, item_image, item_mask, item_size
from wsssfast.data.labels_file import match_labels, read_csv, read_labels
from wsssfast.errors import WsssError, listing


def open_folder(root: Path, split: str | None = None, labels: Path | None = None) -> Dataset:
    """Index a folder of images with a CSV of labels.

    Args:
        root: holds `images/*.{jpg,png,…}`, `labels.csv` (header `image,labels`; classes separated
            by `;`), optionally `classes.txt` (one name a line, gives the order; else the sorted
            names of the CSV) and `masks/<stem>.png`.
        split: path of a file that lists image names or ids; all images by default.
        labels: a labels file in place of `labels.csv`.

    Raises:
        WsssError: something is missing or does not fit.
    """
    images, wanted = folder_images(root, split)
    source = labels or root / "labels.csv"
    if not source.is_file():
        raise NoLabels(
            f"Expected the labels of the images at {source}, found none.",
            "Write a CSV with the header image,labels and rows such as cat1.jpg,cat;sofa.",
        )
    class_names = _class_names(root, source)
    found = match_labels(read_labels(source, class_names), wanted, images, source)
    masks = root / "masks"
    have = {one_spelling(p.name): p for p in masks.iterdir()} if masks.is_dir() else {}
    return Dataset(
        name="folder",
        split=split or "all",
        class_names=class_names,
        items=tuple(Item(i, found[i], images[i], have.get(f"{i}.png")) for i in sorted(wanted)),
        image_size=item_size,
        load_image=item_image,
        load_mask=item_mask,
        label_source=source.name,
        ignored=_ignored(root / "images"),
    )


def folder_images(root: Path, split: str | None) -> tuple[dict[str, Path], list[str]]:
    """Every image by id, and the ids of a split, unsorted.

    Args:
        root: as `open_folder` takes it.
        split: as `open_folder` takes it.

    Raises:
        WsssError: no such folder or list, two images of one name, or images are missing.
    """
    require_folder(root, "a data folder")
    above = root.name == "images" and not (root / "images").is_dir()
    folder = require_folder(
        root / "images", "the images of a data folder",
        f"Give the folder above, {root.absolute().parent}." if above
        else f"Move them into {root / 'images'}, or give the folder that holds images/.",
    )  # fmt: skip
    images = images_in(folder)
    if not images:
        raise WsssError(
            f"Expected images in {folder}, found {listing(_ignored(folder)) or 'none'}.",
            f"They have to lie in it, not in folders below, as {', '.join(EXTENSIONS)}.",
        )
    wanted = list(images)
    if split is not None and split != "all":
        if not Path(split).is_file():
            raise WsssError(
                f"Expected a list file at {split}, found none.",
                "For a folder data set --split is the path of a file that lists images.",
            )
        stems = {path.name: stem for stem, path in images.items()}
        wanted = [stems.get(i, i) for i in read_ids(Path(split))]
        absent = [i for i in wanted if i not in images]
        if absent:
            raise WsssError(f"Expected an image in {folder} for {listing(absent)}, found none.")
    return images, wanted


def images_in(folder: Path) -> dict[str, Path]:
    """Every image file of a folder by its name without extension.

    Raises:
        WsssError: two of one name.
    """
    images: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in EXTENSIONS:
            image_id = one_spelling(path.stem)
            if image_id in images:
                raise WsssError(
                    f"Found {images[image_id].name} and {path.name} in {folder}.",
                    "Masks and results go by the name without extension: rename one.",
                )
            images[image_id] = path
    return images


def _ignored(folder: Path) -> tuple[str, ...]:
    """What lies in a folder of images and is none, but for what systems leave there."""
    return tuple(
        f"{path.name}/" if path.is_dir() else path.name
        for path in sorted(folder.iterdir())
        if path.suffix.lower() not in EXTENSIONS
        and not path.name.startswith(".")
        and path.name not in ("Thumbs.db", "desktop.ini")
    )


def _class_names(root: Path, source: Path) -> tuple[str, ...]:
    listed = root / "classes.txt"
    if listed.is_file():
        return tuple(map(class_name, read_lines(listed, "class names")))
    if source.suffix != ".csv":
        raise WsssError(f"Expected the class names at {listed}, found none.")
    return tuple(sorted({name for names in read_csv(source).values() for name in names}))
