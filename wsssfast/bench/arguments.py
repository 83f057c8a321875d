"""Arguments that the scripts in `benchmarks/` share: which data set, opened."""

import argparse
from pathlib import Path

from wsssfast.data import open_dataset
from wsssfast.data.dataset import Dataset


def data_arguments(parser: argparse.ArgumentParser, dataset: str = "voc") -> None:
    """--dataset, --data-root and --split.

    Args:
        parser: that gets them.
        dataset: which by default.
    """
    parser.add_argument("--dataset", default=dataset)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--split")


def opened(args: argparse.Namespace) -> Dataset:
    """The data set that the arguments name.

    Raises:
        WsssError: there is none.
    """
    return open_dataset(args.dataset, args.data_root, args.split)
