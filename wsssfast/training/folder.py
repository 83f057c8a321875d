"""The folder of a training run: continued, refused or emptied; and what it says of the run."""

import json
import shutil
from pathlib import Path
from typing import Any

from wsssfast.data.dataset import Dataset
from wsssfast.errors import WsssError
from wsssfast.files import output_folder, require_empty
from wsssfast.training import logs, state
from wsssfast.versions import versions

LISTS = ("train-ids.txt", "held-out-ids.txt")
_OURS = (state.NAME, logs.NAME, "last.safetensors", "best.safetensors", "options.json", *LISTS)
_FOLDERS = ("tensorboard", "cells")


def open_run(
    out: Path,
    dataset: Dataset,
    held_out: Dataset | None,
    settings: dict[str, Any],
    *,
    resume: bool,
    overwrite: bool,
) -> None:
    """Make the folder ready, and write down options and ids; done by one worker only.

    Args:
        out: folder of the run.
        dataset: what is trained on; its ids go to `train-ids.txt`.
        held_out: what is scored, if anything; its ids go to `held-out-ids.txt`. Both files serve
            as --split.
        settings: the resolved options, for `options.json`.
        resume: whether a run in `out` may be continued.
        overwrite: discard a run in `out` first.

    Raises:
        WsssError: a folder that cannot be used.
    """
    output_folder(out, "the run")
    if overwrite:
        for name in _OURS:
            (out / name).unlink(missing_ok=True)
        for partial in out.glob(".*.partial"):
            partial.unlink()
        for name in _FOLDERS:
            shutil.rmtree(out / name, ignore_errors=True)
    if not resume:
        require_empty(out)
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
