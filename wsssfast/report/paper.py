"""One HTML page: every published table beside what was measured here."""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsssfast.errors import WsssError
from wsssfast.parse import json_of, what_fails
from wsssfast.report.page import write_page

# what can be measured -> the command that does, with --json
KINDS = {
    "ablation": "wsssfast ablate",
    "price": "wsssfast price",
    "labels": "wsssfast evaluate labels",
    "seg": "wsssfast evaluate seg",
    "baseline-seg": "wsssfast evaluate seg, of a segmenter trained on unmodulated CAMs",
    "coco-seg": "wsssfast evaluate seg, on COCO",
}
_PUBLISHED = Path(__file__).parent / "published.toml"
_OURS = "this method"
Cells = list[float | None]


@dataclass(frozen=True)
class Row:
    """A row of a table; figures as they are printed, None where there is none.

    Attributes:
        name: of the method or setting.
        published: figures.
        here: ours in the same columns; empty where ours have no place.
    """

    name: str
    published: Cells
    here: Cells


@dataclass(frozen=True)
class PaperTable:
    """A published table beside ours."""

    key: str
    title: str
    source: str
    columns: list[str]
    rows: list[Row]


def read_measured(named: Mapping[str, Path]) -> dict[str, Any]:
    """The JSON files of what was measured.

    Args:
        named: of `KINDS` -> file.

    Raises:
        WsssError: an unknown name, no such file, or a file of another command.
    """
    found = {}
    for name, path in named.items():
        if name not in KINDS:
            raise WsssError(f"Expected measured figures of {', '.join(KINDS)}, found {name!r}.")
        try:
            found[name] = json_of(path.read_text(encoding="utf-8"))
            tables_of({name: found[name]})
            _told(name, found[name])
        except (OSError, ValueError, LookupError, TypeError, AttributeError,
                OverflowError) as error:  # fmt: skip
            raise WsssError(
                f"Expected the figures of {name} in {path}, found something else: "
                f"{what_fails(error)}.",
                f"Make them with --json of `{KINDS[name]}`.",
            ) from error
    return found


def tables_of(measured: Mapping[str, Any]) -> list[PaperTable]:
    """Every published table with what was measured.

    Args:
        measured: of `KINDS` -> content of its JSON file.

    Raises:
        LookupError, TypeError, ValueError, AttributeError, OverflowError: of another command.
    """
    with _PUBLISHED.open("rb") as file:
        published = tomllib.load(file)["table"]
    tables = []
    for table in published:
        rows = []
        for name, *cells in table["rows"]:
            ours = _HERE[table["key"]](name, measured) if table["key"] in _HERE else []
            rows.append(Row(name, [None if c == "-" else float(c) for c in cells], ours))
        tables.append(PaperTable(**{**table, "rows": rows}))
    return tables


def write_paper_report(out: Path, measured: Mapping[str, Any]) -> None:
    """Write one self-contained HTML file; equal input gives an equal file.

    Args:
        out: the file; its folder is made.
        measured: of `read_measured`.
    """
    write_page(
        out,
        "paper.html",
        title="wsssfast: the paper's tables",
        tables=tables_of(measured),
        kinds=KINDS,
        told={name: _told(name, found) for name, found in measured.items()},
        failed=[],
    )  # fmt: skip


def _told(name: str, found: Mapping[str, Any]) -> str:
    """On what it was measured."""
    if name == "price":
        options = found["options"]
        return f"{found['device']}, {options['arch']}, {options['images']:,} images a pass"
    where = f"{found['dataset']}, split {found['split']}, " if "split" in found else ""
    return f"{where}{found['images']:,} images"


def _scored(measured: Mapping[str, Any], **wanted: Any) -> float | None:
    """Percent mIoU of the one setting of an ablation with these fields; None where it is absent.

    What is left open is as the paper has it.
    """
    if "ablation" not in measured:
        return None
    stage = wanted["stage"]
    usual = {"scales": [1.0], "c2p_layers": 3, "p2p_layers": 12, "propagation": "gather",
             "related_by": "attention", "ratio": 0.3, "alpha": 1.2}  # fmt: skip
    for row in measured["ablation"]["settings"]:
        fields = {key: row[key] for key in usual if row[key] is not None}
        if row["stage"] == stage and fields == {k: {**usual, **wanted}[k] for k in fields}:
            return 100 * float(row["miou"])
    return None


def _miou(measured: Mapping[str, Any], name: str) -> float | None:
    return 100 * float(measured[name]["miou"]) if name in measured else None


def _cost(name: str, measured: Mapping[str, Any]) -> Cells:
    if name != _OURS or "price" not in measured:
        return []
    stages = {stage["stage"]: stage for stage in measured["price"]["stages"]}
    train, export = stages["train"], stages["export-cams"]
    return [train["macs"] / 1e9, train["parameters"] / 1e6, float(export["images_per_second"]),
            float(train["hours"]), train["memory"] / 1e6]  # fmt: skip


def _modulation(name: str, measured: Mapping[str, Any]) -> Cells:
    if name == _OURS:
        return [_scored(measured, stage="final"), _miou(measured, "seg")]
    return [_scored(measured, stage="original+c2p+p2p"), _miou(measured, "baseline-seg")]


def _stage(name: str, measured: Mapping[str, Any]) -> Cells:
    stage = {
        "initial": "original", "initial + p2p": "original+p2p", "initial + c2p": "modulated",
        "initial + c2p + p2p": "final", "Original-CAM": "original", "Modulated-CAM": "modulated",
        "Final-CAM": "final",
    }[name]  # fmt: skip
    return [_scored(measured, stage=stage)]


def _if_ours(*figures: Callable[[Mapping[str, Any]], float | None]) -> "_Here":
    def found(name: str, measured: Mapping[str, Any]) -> Cells:
        return [figure(measured) for figure in figures] if name == _OURS else []

    return found


_Here = Callable[[str, Mapping[str, Any]], Cells]
_HERE: dict[str, _Here] = {
    "1": _cost,
    "2": _modulation,
    "fig5": lambda name, m: [_scored(m, stage="final", ratio=int(name.split()[0]) / 100)],
    "3": lambda name, m: [_scored(m, stage="final", alpha=float(name))],
    "4": _stage,
    "5": _stage,
    "6": _if_ours(lambda m: _scored(m, stage="final"), lambda m: _miou(m, "labels")),
    "7": _if_ours(lambda m: _miou(m, "seg"), lambda m: None),
    "8": _if_ours(lambda m: _miou(m, "coco-seg")),
}
