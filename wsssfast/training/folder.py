"""The folder of a training run: continued, refused or emptied; and what it says of the run."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from wsssfast.data.dataset import Dataset
from wsssfast.errors import WsssError
from wsssfast.files import require_empty, telling_no_room
from wsssfast.shards import lock
from wsssfast.shards.lock import folder_lock
from wsssfast.training import logs, state
from wsssfast.training.workers import Workers
from wsssfast.versions import versions

LISTS = ("train-ids.txt", "held-out-ids.txt")
_OURS = (state.NAME, logs.NAME, "last.safetensors", "best.safetensors", "options.json", *LISTS)
_FOLDERS = ("tensorboard", "cells")
_REMEDY = "Wait for it, or choose another --out."


@contextmanager
def run_folder(
    out: Path,
    dataset: Dataset,
    held_out: Dataset | None,
    settings: dict[str, Any],
    workers: Workers,
    *,
    resume: bool,
    overwrite: bool,
) -> Iterator[None]:
    """Keep other runs out of the folder, make it ready, and write down options and ids.

    Args:
        out: folder of the run.
        dataset: what is trained on; its ids go to `train-ids.txt`.
        held_out: what is scored, if anything; its ids go to `held-out-ids.txt`. Both files serve
            as --split.
        settings: the resolved options, for `options.json`.
        workers: of the run; the first does it, the others wait.
        resume: whether a run in `out` may be continued.
        overwrite: discard a run in `out` first.

    Raises:
        WsssError: a folder that cannot be used, or another run is writing there.
    """
    with ExitStack() as held:

        def begin() -> None:
            held.enter_context(folder_lock(out, remedy=_REMEDY))
            with telling_no_room(out):
                _make_ready(out, dataset, held_out, settings, resume, overwrite)

        workers.first_does(begin)
        yield


def _make_ready(
    out: Path,
    dataset: Dataset,
    held_out: Dataset | None,
    settings: dict[str, Any],
    resume: bool,
    overwrite: bool,
) -> None:
    for unfinished in out.glob(".*.partial"):  # of runs that were killed
        unfinished.unlink()
    if overwrite:
        for name in _OURS:
            (out / name).unlink(missing_ok=True)
        for name in _FOLDERS:
            shutil.rmtree(out / name, ignore_errors=True)
    if not resume:
        require_empty(out, besides=lock.NAME)
    if (out / "last.safetensors").exists() and not (out / state.NAME).exists():
        raise WsssError(
            f"Expected a run to continue in {out}, found a checkpoint without {state.NAME}.",
            "Choose another --out, or discard it with --overwrite.",
        )
    if (out / state.NAME).exists():
        return
    record = {**settings, "versions": versions("torchvision")}
    text = json.dumps(record, indent=1, default=str)
    (out / "options.json").write_text(text + "\n", encoding="utf-8")
    for name, part in zip(LISTS, (dataset, held_out), strict=True):
        (out / name).unlink(missing_ok=True)
        if part is not None:
            lines = "".join(f"{item.id}\n" for item in part)
            (out / name).write_text(lines, encoding="utf-8")
