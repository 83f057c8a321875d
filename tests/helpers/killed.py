"""Export again and again, killed with SIGKILL at random moments; ends with 0 if nothing was harmed.

    python tests/helpers/killed.py FOLDER KILLS WORKERS cams|labels

An export that comes to its end must have left the bytes of an undisturbed one, and begins anew.
Prints how many were killed, and at how many different numbers of finished shards.
"""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from support import tiny_model

from wsssfast.cam_options import CamOptions
from wsssfast.data import open_dataset
from wsssfast.export import export_cams
from wsssfast.label_options import LabelOptions
from wsssfast.labels import export_labels
from wsssfast.shards import CamShards


def shards_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*-of-*")}


def start(out: Path, worker: tuple[int, int], kind: str) -> int:
    """Export CAMs, or labels by a CRF of those in the folder beside, in a process of its own."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        dataset = open_dataset("synthetic", None, "val:24")
        model = tiny_model(classes=dataset.class_names)
        if kind == "cams":
            export_cams(model, dataset, out, CamOptions(), shard_size=2, worker=worker)
        else:
            options = LabelOptions("final", background_exponent=(1, 12), refine="crf")
            export_labels(CamShards(out.parent / "cams"), out, options, dataset, worker=worker)
        code = 0
    finally:
        os._exit(code)


def ended_well(process: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


def main() -> None:
    folder, kills, workers, kind = (
        Path(sys.argv[1]),
        int(sys.argv[2]),
        int(sys.argv[3]),
        sys.argv[4],
    )
    whole, out = folder / "whole", folder / "out"
    if kind == "labels":
        assert ended_well(start(folder / "cams", (0, 1), "cams"))
    begin = time.perf_counter()
    assert ended_well(start(whole, (0, 1), kind))
    longest = time.perf_counter() - begin
    chance, killed, seen = random.Random(0), 0, set()
    while killed < kills:
        processes = [start(out, (n, workers), kind) for n in range(workers)]
        time.sleep(chance.uniform(0, longest))
        os.kill(processes[-1], signal.SIGKILL)  # nothing where it has ended
        killed += not ended_well(processes[-1])
        seen.add(len(list(out.glob("*-of-*.json"))))
        assert all(ended_well(process) for process in processes[:-1])
        if workers > 1 or len(shards_of(out)) == len(shards_of(whole)):
            assert ended_well(start(out, (0, workers), kind))  # the next run
            assert shards_of(out) == shards_of(whole)
            shutil.rmtree(out)
    assert ended_well(start(out, (0, 1), kind))
    assert shards_of(out) == shards_of(whole)
    print(killed, "killed, at", len(seen), "numbers of finished shards")


if __name__ == "__main__":
    main()
