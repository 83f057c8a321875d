"""`wsssfast inspect` and `wsssfast verify`."""

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from wsssfast.cli.options import json_option, table, write_json
from wsssfast.cli.paths import SHARDS
from wsssfast.errors import SOME_UNREADABLE, USER_ERROR, WsssError, counted, listing

_HASH = re.compile(r"[0-9a-f]{64}")


@click.command()
@click.argument("folder", type=SHARDS)
@json_option
def inspect(folder: Path, json_path: str | None) -> None:
    """Say what a folder of shards holds, what made it, and what is missing.

    \b
    Example:
      wsssfast inspect cams
    """
    from wsssfast.shards import open_shards
    from wsssfast.shards.format import stored_bytes

    _require_shards(folder)
    shards = open_shards(folder)
    stored = stored_bytes(folder, shards.kind)
    first = next(iter(shards.sidecars.values()))
    found = {
        "kind": shards.kind,
        "images": len(shards),
        "bytes": stored,
        "bytes_per_image": stored / max(1, len(shards)),
        "missing_shards": shards.missing_shards,
        "failed": shards.failed,
        "identity": shards.identity,
        "config": first.config,
        "versions": first.versions,
    }
    write_json(found, json_path)
    if json_path == "-":
        return
    told = {key: value for key, value in found.items() if not isinstance(value, dict)}
    told["missing_shards"] = listing(shards.missing_names, 8)
    told["bytes_per_image"] = round(stored / max(1, len(shards)))
    told["failed"] = listing([f"{name}: {reason}" for name, reason in shards.failed.items()])
    told |= {**_made_from(first.config), "versions": first.versions}
    identity = {**shards.identity, "class_names": f"{len(shards.class_names)} classes"}
    rows = [[key, _text(value)] for key, value in [*told.items(), *sorted(identity.items())]]
    table(str(folder), ["key", "value"], rows)


def _require_shards(folder: Path) -> None:
    """Refuse a folder without shards."""
    from wsssfast.shards.format import kinds_in

    if not folder.is_dir():
        raise WsssError(f"Expected a folder of shards at {folder.absolute()}, found none.")
    if not kinds_in(folder):
        raise WsssError(
            f"Expected CAM, label or score shards in {folder}, found none.",
            "`wsssfast export-cams` and `export-labels` make them; PNG masks are for `wsssfast "
            "evaluate seg`.",
        )


def _made_from(config: Mapping[str, Any]) -> dict[str, Any]:
    """Data set, split and checkpoint, where a shard's record, or that of its CAMs, has them."""
    cams = config.get("cams")
    whole = {**(cams if isinstance(cams, dict) else {}), **config}
    names = {"dataset": "data set", "split": "split", "checkpoint": "checkpoint"}
    return {name: whole[key] for key, name in names.items() if key in whole}


def _text(value: Any) -> str:
    """A value of JSON as a table shows it: without quotes, hashes by their first 12 digits."""
    if isinstance(value, str):
        return value[:12] if _HASH.fullmatch(value) else value or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(one)}" for key, one in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    return "none" if value is None else json.dumps(value)


@click.command()
@click.argument("folder", type=SHARDS)
@json_option
def verify(folder: Path, json_path: str | None) -> None:
    """Read every byte of a folder of shards and compare it with the checksums.

    Exit code 2 if anything is wrong, 3 if all is well but some images could not be read at export.

    \b
    Example:
      wsssfast verify cams
    """
    from wsssfast.shards import verify_shards

    _require_shards(folder)
    verdict = verify_shards(folder)
    write_json(asdict(verdict), json_path)
    if json_path != "-":
        shards, images = counted(verdict.shards, "shard"), counted(verdict.images, "image")
        click.echo(f"{shards} with {images} checked in {folder}")
        for name in verdict.missing:
            click.echo(f"missing: {name} (run the export again)")
        for image_id, reason in verdict.failed.items():
            click.echo(f"unreadable at export: {image_id}: {reason}")
    for problem in verdict.problems:
        click.echo(f"Error: {problem}", err=True)
    if verdict.problems or verdict.missing:
        sys.exit(USER_ERROR)
    sys.exit(SOME_UNREADABLE if verdict.failed else 0)
