"""What a data set is here: an index of images, labels and masks that holds no pixels."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsssfast.errors import WsssError, listing

IGNORE = 255  # mask value that is neither background nor class
Mask = NDArray[np.uint8]

_UNSAFE = re.compile(r"[/\\\x00-\x1f\x7f\ud800-\udfff]|^\.{0,2}$")


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a data set.

    Attributes:
        id: unique name, fit to be a file name.
        labels: sorted 0-based class indices of its image-level labels; empty: none of the classes.
        image: file of the image; None where the data set makes it.
        mask: file of its pixel mask; None where there is none or the data set makes it.
    """

    id: str
    labels: tuple[int, ...]
    image: Path | None = None
    mask: Path | None = None


@dataclass(frozen=True)
class Dataset:
    """An ordered, immutable index.

    Attributes:
        name: voc, coco, folder or synthetic.
        split: which part of it.
        class_names: the C foreground classes; class index c is mask value c + 1.
        items: sorted by id.
        image_size: item -> (width, height) from its header, without decoding.
        load_image: item -> RGB image, orientation applied. Raises BadFile.
        load_mask: item -> uint8 [H, W] with 0 background, 1..C, 255 ignore; None where the item
            has no mask. Raises BadFile.
        label_source: where the image-level labels came from, for the record.
        ignored: names of what lies among the images and is none that is read.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    items: tuple[Item, ...]
    image_size: Callable[[Item], tuple[int, int]]
    load_image: Callable[[Item], Image.Image]
    load_mask: Callable[[Item], Mask | None]
    label_source: str
    ignored: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.items:
            raise WsssError(
                f"The split {self.split!r} of the {self.name} data set is empty.",
                "Name a split or list file that holds image ids.",
            )
        if len(self.class_names) > IGNORE - 1:
            raise WsssError(
                f"Expected at most {IGNORE - 1} classes, found {len(self.class_names)}.",
                "Masks are 8-bit: 0 is background and 255 ignore.",
            )
        if len({"background", *self.class_names}) <= len(self.class_names):
            raise WsssError(
                "Expected the names of the foreground classes, each once and none of them "
                f"'background', found {listing(self.class_names, 8)}.",
                "The background is class 0 of every mask: it has no line in classes.txt.",
            )
        doubled = [b.id for a, b in zip(self.items, self.items[1:], strict=False) if a.id == b.id]
        if doubled:
            raise WsssError(
                f"Expected each image id once, found more of {listing(doubled)}.",
                "Rename the files or mend the list.",
            )
        require_safe_ids([item.id for item in self.items])

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    @cached_property
    def by_id(self) -> dict[str, Item]:
        """Item of each id."""
        return {item.id: item for item in self.items}

    def subset(self, keep: Callable[[int, Item], bool], name: str) -> "Dataset":
        """The items for which `keep(position, item)` holds, under another split name.

        Raises:
            WsssError: none is left.
        """
        items = tuple(item for n, item in enumerate(self.items) if keep(n, item))
        return replace(self, items=items, split=name)

    def unlabelled(self) -> "Dataset":
        """The same images without labels."""
        return replace(self, items=tuple(replace(item, labels=()) for item in self.items))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over class names, ids and labels: equal for equal data wherever it lies."""
        digest = hashlib.sha256(json.dumps(self.class_names).encode())
        for item in self.items:
            digest.update(f"{item.id}\0{','.join(map(str, item.labels))}\n".encode())
        return digest.hexdigest()


def hold_out(dataset: Dataset, every: int) -> tuple[Dataset, Dataset]:
    """All but every N-th of the sorted ids, and those: the first, the N + 1st and so on."""
    share = f"1/{every}"
    return (
        dataset.subset(lambda n, item: n % every != 0, f"{dataset.split} without {share}"),
        dataset.subset(lambda n, item: n % every == 0, f"{share} of {dataset.split}"),
    )


def require_safe_ids(ids: Sequence[str]) -> None:
    """Refuse ids that as a file name would leave the output folder.

    Raises:
        WsssError: slashes, control characters, or nothing but dots.
    """
    unsafe = [repr(i) for i in ids if _UNSAFE.search(i)]
    if unsafe:
        raise WsssError(
            f"Expected image ids fit for a file name, found {listing(unsafe)}.",
            "Use ids without slashes and control characters.",
        )


def require_folder(path: Path, what: str, remedy: str = "Check --data-root.") -> Path:
    """`path` if it is a folder, or a clear error that says `what` was expected there."""
    if not path.is_dir():
        raise WsssError(f"Expected {what} at {path}, found none.", remedy)
    return path


def one_spelling(text: str) -> str:
    """Unicode's composed form: macOS stores the ü of a file name as u and two dots."""
    return unicodedata.normalize("NFC", text)


def class_name(text: str) -> str:
    """One spelling of a class's name: composed letters, single plain spaces."""
    return " ".join(one_spelling(text).split())


class NoLabels(WsssError):  # noqa: N818  (as BadFile)
    """A data set without image-level labels, where a command may do without."""


def read_ids(path: Path) -> list[str]:
    """Ids of a list file: one a line, plain or PSA-style (`/JPEGImages/x.jpg /Segm…/x.png`).

    Raises:
        WsssError: not a text file.
    """
    names = [line.split()[0] if line.startswith("/") else line
             for line in read_lines(path, "image ids")]  # fmt: skip
    ids = [Path(name).stem if "/" in name else name.removesuffix(".jpg") for name in names]
    return [one_spelling(i) for i in ids]


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a UTF-8 text file that are not empty, without space around them.

    Args:
        path: of the file; a byte order mark is left out.
        what: they are, as the error says it.

    Raises:
        WsssError: not a text file.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        told = f"{error.strerror}" if isinstance(error, OSError) else "it is not UTF-8"
        raise WsssError(f"Expected a text file of {what} at {path}: {told}.") from error
    return [line.strip() for line in lines if line.strip()]


def odd_values(mask: Mask, classes: int) -> Mask:
    """The values of a mask that are neither background, nor one of C classes, nor 255."""
    found: Mask = mask[(mask > classes) & (mask != IGNORE)]
    return found
