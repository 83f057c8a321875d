"""`wsssfast inspect` and `wsssfast verify`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from wsssfast.cli.options import FILE, json_option, table, write_json
from wsssfast.errors import SOME_UNREADABLE, USER_ERROR


@click.command()
@click.argument("folder", type=FILE)
@json_option
def inspect(folder: Path, json_path: str | None) -> None:
    """Say what a folder of shards holds, what made it, and what is missing.

    \b
    Example:
      wsssfast inspect cams
    """
    from wsssfast.shards import open_shards
    from wsssfast.shards.format import stored_bytes

    shards = open_shards(folder)
    stored = stored_bytes(folder, shards.kind)
    found = {
        "kind": shards.kind,
        "images": len(shards),
        "bytes": stored,
        "bytes_per_image": stored / max(1, len(shards)),
        "missing_shards": shards.missing_shards,
        "failed": shards.failed,
        "identity": shards.identity,
    }
    write_json(found, json_path)
    if json_path == "-":
        return
    rows = [[key, json.dumps(value)] for key, value in found.items() if key != "identity"]
    identity = {**shards.identity, "class_names": f"{len(shards.class_names)} classes"}
    rows += [[key, json.dumps(value)] for key, value in sorted(identity.items())]
    table(str(folder), ["key", "value"], rows)


@click.command()
@click.argument("folder", type=FILE)
@json_option
def verify(folder: Path, json_path: str | None) -> None:
    """Read every byte of a folder of shards and compare it with the checksums.

    Exit code 2 if anything is wrong, 3 if all is well but some images could not be read at export.

    \b
    Example:
      wsssfast verify cams
    """
    from wsssfast.shards import verify_shards

    verdict = verify_shards(folder)
    write_json(asdict(verdict), json_path)
    if json_path != "-":
        click.echo(f"{verdict.shards} shards with {verdict.images} images checked in {folder}")
        for name in verdict.missing:
            click.echo(f"missing: {name} (run the export again)")
        for image_id, reason in verdict.failed.items():
            click.echo(f"unreadable at export: {image_id}: {reason}")
    for problem in verdict.problems:
        click.echo(f"Error: {problem}", err=True)
    if verdict.problems or verdict.missing:
        sys.exit(USER_ERROR)
    sys.exit(SOME_UNREADABLE if verdict.failed else 0)
