"""The data set of a command, as its options say."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from wsssfast.cli.paths import FILE, ROOT
from wsssfast.errors import WsssError

if TYPE_CHECKING:
    from wsssfast.data.dataset import Dataset

F = TypeVar("F", bound=Callable[..., Any])
_LOOKS = (("voc", "JPEGImages"), ("voc", "VOC2012"), ("voc", "VOCdevkit"), ("coco", "annotations"),
          ("folder", "images"))  # fmt: skip
_PREDICTED, _NONE = Path("predicted"), Path("none")  # in place of a labels file


def dataset_options(command: F) -> F:
    """--dataset, --data-root, --split and --labels, which the command gets as one `data`."""

    @wraps(command)
    def gathered(*args: Any, **values: Any) -> Any:
        own = [values.pop(name) for name in ("kind", "root", "split", "labels")]
        return command(*args, data=Data(*own), **values)

    decorated: Any = gathered
    for option in reversed((
        click.option("--dataset", "kind", type=click.Choice(["voc", "coco", "folder", "synthetic"]),
                     help="What layout the data has."),
        click.option("--data-root", "root", type=ROOT, help="Folder of the data set."),
        click.option("--split", help="Which part: a name of the data set's, or a list file; "
                     "voc: train_aug, coco: train2014 or train2017, else all; coco takes "
                     "SPLIT:list.txt too."),
        click.option("--labels", type=FILE, help="Image labels, not the data set's own: a .json, "
                     ".csv or .npy file. none: do without (dataset check, train-seg, predict). "
                     "predicted: what the classifier sees (export-cams, export-labels)."),
    )):  # fmt: skip
        decorated = option(decorated)
    wrapped: F = decorated
    return wrapped


@dataclass(frozen=True)
class Data:
    """Values of the options; each way to open them raises WsssError for what is wrong there."""

    kind: str | None
    root: Path | None
    split: str | None
    labels: Path | None

    @property
    def predicted(self) -> bool:
        """Whether --labels asks for the classes that the classifier sees."""
        return self.labels == _PREDICTED

    def open(self) -> "Dataset":
        """With the image labels of a file or of the data set's own."""
        return self._open(self.split, self.labels)

    def open_for(self, classes: tuple[str, ...]) -> "Dataset":
        """As `open`; of such `classes` and without labels where those are to be predicted."""
        from wsssfast.data.unlabelled import open_unlabelled

        if self.predicted:
            return open_unlabelled(self._named(), self.root, self.split, classes)
        return self._open_or("--labels predicted takes the classes that the classifier sees")

    def open_images(self, classes: tuple[str, ...]) -> "Dataset":
        """Where image labels are not used: --labels none or predicted needs none."""
        from wsssfast.data.unlabelled import open_unlabelled

        if self.labels in (_NONE, _PREDICTED):
            return open_unlabelled(self._named(), self.root, self.split, classes)
        return self._open_or("--labels none does without them")

    def _open_or(self, way: str) -> "Dataset":
        """As `open`; where labels are missing, the other way is told."""
        from wsssfast.data.dataset import NoLabels

        try:
            return self.open()
        except NoLabels as error:
            raise WsssError(error.message, f"{way}. Or: {error.remedy}") from error

    def held_out(self, split: str | None) -> "Dataset | None":
        """Another split, with masks to score against; None where none is named."""
        labels = None if self.labels in (_NONE, _PREDICTED) else self.labels
        return self._open(split, labels) if split else None

    def _open(self, split: str | None, labels: Path | None) -> "Dataset":
        from wsssfast.data import open_dataset

        return open_dataset(self._named(), self.root, split, labels)

    def _named(self) -> str:
        """The kind; what the folder looks like is told, but not taken for granted."""
        if self.kind:
            return self.kind
        looks = [kind for kind, within in _LOOKS if self.root and (self.root / within).is_dir()]
        raise WsssError(
            "Expected a data set, found no --dataset.",
            f"Give --dataset {looks[0]}, as which {self.root} looks." if looks else
            "Give --dataset voc, coco or folder with its --data-root; or synthetic.",
        )  # fmt: skip
