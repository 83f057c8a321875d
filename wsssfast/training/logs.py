"""Logs of a training run: one JSON object a line in `log.jsonl`, and TensorBoard's files."""

import json
from pathlib import Path
from typing import Any

from wsssfast.files import publish
from wsssfast.parse import json_of

NAME = "log.jsonl"


class Logs:
    """Appends to both logs; what lies beyond the step of a resumed run is dropped first.

    Args:
        out: folder of the run.
        step: steps that are done.
    """

    def __init__(self, out: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = out / NAME
        kept = [line for line in read_log(out) if line["step"] <= step] if step else []
        text = "".join(json.dumps(line) + "\n" for line in kept)
        publish(path, lambda partial: partial.write_text(text, encoding="utf-8"))
        self._lines = path.open("a", encoding="utf-8")
        self._board: Any = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def steps(self, rows: list[dict[str, float]]) -> None:
        """Steps done since the last call: step, loss, rate and images_per_second of each."""
        for row in rows:
            self._lines.write(json.dumps(row) + "\n")
            for key in ("loss", "rate", "images_per_second"):
                self._board.add_scalar(f"train/{key}", row[key], int(row["step"]))
        self._lines.flush()

    def epoch(self, row: dict[str, Any]) -> None:
        """The scores after an epoch."""
        self._lines.write(json.dumps(row) + "\n")
        self._lines.flush()
        for key, value in row["scores"].items():
            if isinstance(value, float):
                self._board.add_scalar(f"val/{key}", value, row["step"])
        self._board.flush()

    def close(self) -> None:
        """Close both."""
        self._lines.close()
        self._board.close()


def read_log(out: Path) -> list[dict[str, Any]]:
    """All complete lines of a run's log; none where there is no log."""
    path = out / NAME
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json_of(text)
        except ValueError:  # a line that a kill cut short
            continue
        if isinstance(line, dict) and type(line.get("step")) is int:
            lines.append(line)
    return lines
