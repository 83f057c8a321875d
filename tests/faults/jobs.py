"""The five long commands on a tiny data set, each in a process of its own that a fault meets."""

import multiprocessing
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from support import as_labels, bytes_of, folder_dataset, tiny_config, tiny_model

from wsssfast.cli.main import run
from wsssfast.data import open_dataset
from wsssfast.models.affinity import AffinityConfig, AffinityNet
from wsssfast.models.checkpoint import save_model
from wsssfast.models.classifier_config import ClassifierConfig

SIZES = ((90, 80), (80, 90), (60, 47), (104, 96), (96, 80), (88, 96))
NAMES = ("cat", "dog", "cow")
COMMANDS = ("train", "export-cams", "train-affinity", "export-labels", "train-seg")
SCHEDULE = [
    "--epochs", 2, "--batch-size", 2, "--warmup-epochs", 0, "--save-minutes", 1e-9, "--crop", 72,
]  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A command and its folders.

    Attributes:
        command: one of COMMANDS.
        root: folder of what it reads: data, cams, labels, networks.
        out: where it writes.
        processes: helpers that decode or refine; 0 where it does all alone.
        more: words that come last.
    """

    command: str
    root: Path
    out: Path
    processes: int = 0
    more: tuple[str, ...] = ()

    def words(self) -> list[str]:
        """What a user would type."""
        root = self.root
        start = ["--pretrained", root / "classifier.safetensors", "--loader-workers"]
        start.append(self.processes)
        own = {
            "train": [*SCHEDULE[:-2], "--pretrained", "none", *start[2:], "--image-size", 32],
            "export-cams": ["--checkpoint", root / "classifier.safetensors", "--shard-size", 2],
            "train-affinity": [
                "--cams", root / "cams", "--trunk", "vit", "--refine", "none", *start, *SCHEDULE,
            ],
            "export-labels": [
                "--cams", root / "cams", "--refine", "affinity+crf", "--affinity",
                root / "affinity.safetensors", "--background", 0.4, "--crf-workers",
                max(1, self.processes),
            ],
            "train-seg": ["--label-shards", root / "labels", *start, *SCHEDULE],
        }[self.command]  # fmt: skip
        data = ["--dataset", "folder", "--data-root", root / "data", "--out", self.out]
        return ["wsssfast", self.command, *map(str, [*data, *own, *self.more])]

    def results(self) -> dict[str, object]:
        """What it leaves, in a form that can be compared: bytes of shards, bits of weights."""
        found: dict[str, object] = dict(bytes_of(self.out, "*-of-*"))
        last = self.out / "last.safetensors"
        if last.exists():
            for name, tensor in load_file(last).items():
                found[name] = tensor.numpy().tobytes()
        return found


def make_inputs(root: Path) -> None:
    """What the commands read."""
    dataset = open_dataset("folder", folder_dataset(root / "data", SIZES))
    save_model(tiny_model(classes=NAMES), root / "classifier.safetensors")
    as_labels(root / "labels", dataset)
    torch.manual_seed(0)
    save_model(AffinityNet(AffinityConfig(NAMES, "vit", tiny_config(NAMES))),
               root / "affinity.safetensors")  # fmt: skip
    job = Job("export-cams", root, root / "cams")
    assert Running(job).end() == (0, "")


class Running:
    """A command that runs; `arm(job)` is called in its process before it begins."""

    _context = multiprocessing.get_context("forkserver")

    def __init__(self, job: Job, arm=None):
        self._context.set_forkserver_preload(["jobs", "faults", "wsssfast.training.segmenter"])
        self.told, theirs = self._context.Pipe(duplex=False)
        self.process = self._context.Process(target=_in_process, args=(job, arm, theirs))
        self.process.start()
        theirs.close()

    def end(self) -> tuple[int, str]:
        """Wait for it: (exit code, negative for a signal, and stderr without usual lines)."""
        text = b""
        while found := os.read(self.told.fileno(), 1 << 16):
            text += found
        self.process.join()
        usual = re.compile(r"epoch |train\S*: \d+ images|Only \d+ steps")
        lines = [x for x in text.decode().splitlines() if x and not usual.match(x)]
        return self.process.exitcode, "\n".join(lines)


def _in_process(job, arm, told) -> None:
    os.dup2(told.fileno(), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    told.close()
    torch.set_num_threads(1)
    options = tiny_config().arch_options
    whole = ClassifierConfig.for_backbone
    ClassifierConfig.for_backbone = staticmethod(
        lambda arch, names, size, **ours: whole(arch, names, size, **{**ours, **options})
    )
    sys.argv = job.words()
    if arm:
        arm(job)
    run()
