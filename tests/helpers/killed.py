"""Export again and again, killed with SIGKILL at random moments; ends with 0 if nothing was harmed.

    python tests/helpers/killed.py FOLDER KILLS WORKERS cams|labels|walk|masks

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

import torch
from support import tiny_config, tiny_model

from wsssfast.cam_options import CamOptions
from wsssfast.data import open_dataset
from wsssfast.export import export_cams
from wsssfast.kernels import Pairwise
from wsssfast.labels.options import LabelOptions
from wsssfast.labels.run import export_labels
from wsssfast.labels.walk import walk_by
from wsssfast.models.affinity import AffinityConfig, AffinityNet
from wsssfast.models.checkpoint import save_model
from wsssfast.models.segmenter import Segmenter, SegmenterConfig
from wsssfast.predict import PredictOptions, predict
from wsssfast.segment import SegmentOptions
from wsssfast.shards import CamShards
from wsssfast.shards.run import Filling

NETWORK = "network.safetensors"
MADE_FROM = {"labels": ("cams",), "walk": ("cams", "network"), "masks": ("segmenter",)}


def shards_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*-of-*")}


def start(out: Path, worker: tuple[int, int], kind: str) -> int:
    """Export CAMs, or labels of those in the folder beside, in a process of its own.

    Labels are refined by a CRF, or by a walk over the affinities of a network and a CRF; masks are
    a segmenter's.
    """
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        dataset = open_dataset("synthetic", None, "val:24")
        model = tiny_model(classes=dataset.class_names)
        names, filling = dataset.class_names, Filling(worker=worker)
        if kind == "network":
            torch.manual_seed(0)
            save_model(AffinityNet(AffinityConfig(names, "vit", tiny_config(names))), out)
        elif kind == "segmenter":
            torch.manual_seed(0)
            save_model(Segmenter(SegmenterConfig(names, "vit", tiny_config(names))), out)
        elif kind == "masks":
            options = PredictOptions(SegmentOptions((0.5, 1.0)), Pairwise(4, 3, 83, 5, 3))
            predict(out.parent / NETWORK, dataset, out, options, shard_size=2, filling=filling)
        elif kind == "cams":
            export_cams(model, dataset, out, CamOptions(), shard_size=2, filling=filling)
        else:
            refine, walk, network = "crf", None, None
            if kind == "walk":
                network = out.parent / NETWORK
                refine, walk = "affinity+crf", walk_by(network, dataset.class_names, 8, 64)
            options = LabelOptions("final", background_exponent=(1, 12), refine=refine, walk=walk)
            export_labels(
                CamShards(out.parent / "cams"), out, options, dataset, network=network,
                filling=filling,
            )  # fmt: skip
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
    for source in MADE_FROM.get(kind, ()):
        name = "cams" if source == "cams" else NETWORK
        assert ended_well(start(folder / name, (0, 1), source))
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
