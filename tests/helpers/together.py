"""Exports of 1, 2 and 3 processes at once, with batches of 1, 4 and auto, each into a folder.

    python tests/helpers/together.py FOLDER synthetic|real

Leaves FOLDER/BATCH-WORKERS. The first process computes nothing itself: forked after that, torch's
threads would hang.
"""

import os
import sys
from pathlib import Path

from support import CLASSIFIER, SHARED, tiny_model

from wsssfast.cam_options import CamOptions
from wsssfast.data import open_dataset
from wsssfast.export import export_cams
from wsssfast.models.checkpoint import load_model
from wsssfast.shards.run import Filling


def work(out: Path, what: str, batch_size: int | None, worker: tuple[int, int]) -> None:
    """What one worker does."""
    if what == "real":
        val = open_dataset("voc", SHARED / "data/voc", "val")
        dataset, model = val.subset(lambda n, item: n % 30 == 0, "some"), load_model(CLASSIFIER)
    else:
        dataset = open_dataset("synthetic", None, "val:20")
        model = tiny_model(classes=dataset.class_names)
    export_cams(
        model,
        dataset,
        out,
        CamOptions(),
        shard_size=4,
        batch_size=batch_size,
        filling=Filling(worker=worker),
    )


def main() -> None:
    folder, what = Path(sys.argv[1]), sys.argv[2]
    for batch_size in (1, 4, None):
        for workers in (1, 2, 3):
            processes = []
            for rank in range(workers):
                processes.append(os.fork())
                if not processes[-1]:
                    code = 1
                    try:
                        out = folder / f"{batch_size or 'auto'}-{workers}"
                        work(out, what, batch_size, (rank, workers))
                        code = 0
                    finally:
                        os._exit(code)
            if [0] * workers != [os.waitpid(process, 0)[1] for process in processes]:
                sys.exit("a worker failed")


if __name__ == "__main__":
    main()
