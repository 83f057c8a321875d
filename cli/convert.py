"""`wsssfast convert`."""

from pathlib import Path

import click

from wsssfast.cli.options import FILE, finish, progress
from wsssfast.errors import WsssError


@click.command()
@click.argument("source", type=FILE)
@click.option(
    "--to",
    "target",
    type=click.Choice(["npy", "irn", "shards"]),
    required=True,
    help="npy: MCTformer's and PSA's dicts. irn: IRN's. shards: back from npy.",
)
@click.option("--out", type=FILE, required=True, help="Folder to write to.")
@click.option("--stage", help="Which stage of the shards; the last stored by default.")
@click.option("--classes", help="For --to shards: voc, coco, or a file with one name a line.")
def convert(source: Path, target: str, out: Path, stage: str | None, classes: str | None) -> None:
    """Turn CAM shards into the .npy dumps of other code bases, or such dumps into shards.

    \b
    Example:
      wsssfast convert cams --to npy --out cams-npy
      wsssfast convert cams-npy --to shards --classes voc --out cams-again
    """  # fmt: skip
    from wsssfast.convert import from_npy, to_irn, to_npy
    from wsssfast.shards import CamShards

    if target == "shards":
        names = _class_names(classes)
        total = len(list(source.glob("*.npy"))) if source.is_dir() else 0
        with progress("convert", total) as advance:
            failed = from_npy(source, out, names, advance)
        click.echo(f"{total - len(failed)} images in {out}")
        finish(failed)
        return
    shards = CamShards(source)
    with progress("convert", len(shards)) as advance:
        count = (to_npy if target == "npy" else to_irn)(shards, out, stage, advance)
    click.echo(f"{count} files in {out}")
    finish(shards.failed)


def _class_names(classes: str | None) -> tuple[str, ...]:
    from wsssfast.data.coco_names import CLASS_NAMES as COCO
    from wsssfast.data.voc import CLASS_NAMES as VOC

    if classes is None:
        raise WsssError(
            "Expected the class names.", "Give --classes voc, coco, or a file of names."
        )
    if classes in ("voc", "coco"):
        return VOC if classes == "voc" else COCO
    try:
        lines = Path(classes).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WsssError(f"Expected a file of class names at {classes}: {error}") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names or len(set(names)) != len(names):
        raise WsssError(f"Expected class names in {classes}, each once, found {len(names)} lines.")
    return names
