"""`wsssfast convert`."""

from pathlib import Path

import click

from wsssfast.cli.options import finish, progress
from wsssfast.cli.paths import FILE
from wsssfast.errors import WsssError

_AGAIN = "Complete the export, then run this command again."


@click.command()
@click.argument("source", type=FILE)
@click.option(
    "--to",
    "target",
    type=click.Choice(["npy", "irn", "png", "coco-rle", "voc-archive", "shards"]),
    required=True,
    help="Of CAM shards, npy: MCTformer's and PSA's dicts; irn: IRN's. Of label shards, png: "
    "palette masks; coco-rle: one COCO JSON file; voc-archive: what VOC's server takes. shards: "
    "CAM shards from MCTformer's and PSA's dicts.",
)
@click.option(
    "--out", type=FILE, required=True, help="Folder, or the file of coco-rle and voc-archive."
)
@click.option("--stage", help="For npy and irn: which stage; the last stored by default.")
@click.option("--classes", help="For --to shards: voc, coco, or a file with one name a line.")
def convert(source: Path, target: str, out: Path, stage: str | None, classes: str | None) -> None:
    """Turn shards into the files of other code bases, or .npy CAM dumps into shards.

    Files that are there are replaced, each when the new one is complete.

    \b
    Example:
      wsssfast convert cams --to npy --out cams-npy
      wsssfast convert cams-npy --to shards --classes voc --out cams-again
      wsssfast convert labels --to png --out masks
      wsssfast convert labels --to coco-rle --out masks.json
    """  # fmt: skip
    if stage is not None and target not in ("npy", "irn"):
        raise WsssError(f"Expected --stage with --to npy or irn alone, found --to {target}.")
    if classes is not None and target != "shards":
        raise WsssError(f"Expected --classes with --to shards alone, found --to {target}.")
    if target == "shards":
        _import(source, out, _class_names(classes))
    elif target in ("npy", "irn"):
        _convert_cams(source, target, out, stage)
    else:
        _convert_labels(source, target, out)


def _import(source: Path, out: Path, names: tuple[str, ...]) -> None:
    from wsssfast.convert import from_npy

    total = len(list(source.glob("*.npy"))) if source.is_dir() else 0
    with progress("convert", total) as advance:
        failed = from_npy(source, out, names, advance)
    click.echo(f"{total - len(failed)} images in {out}")
    finish(failed)


def _convert_cams(source: Path, target: str, out: Path, stage: str | None) -> None:
    from wsssfast.convert import to_irn, to_npy
    from wsssfast.shards import CamShards

    shards = CamShards(source)
    with progress("convert", len(shards)) as advance:
        count = (to_npy if target == "npy" else to_irn)(shards, out, stage, advance)
    click.echo(f"{count} files in {out}")
    finish(shards.failed, shards.missing_names, source, _AGAIN)


def _convert_labels(source: Path, target: str, out: Path) -> None:
    from wsssfast.convert_labels import to_coco, to_png, to_voc_archive
    from wsssfast.shards import LabelShards

    if target == "voc-archive":
        require_tgz(out)
    shards = LabelShards(source)
    with progress("convert", len(shards)) as advance:
        ways = {"png": to_png, "coco-rle": to_coco, "voc-archive": to_voc_archive}
        count = ways[target](shards, out, advance)
    click.echo(f"{count} {'files' if target == 'png' else 'images'} in {out}")
    finish(shards.failed, shards.missing_names, source, _AGAIN)


def require_tgz(out: Path) -> None:
    """Refuse a name of VOC's archive that says another format than it has."""
    if not out.name.endswith((".tgz", ".tar.gz")):
        raise WsssError(f"Expected a name that ends in .tgz or .tar.gz, found {out}.")


def _class_names(classes: str | None) -> tuple[str, ...]:
    from wsssfast.data.coco_names import CLASS_NAMES as COCO
    from wsssfast.data.dataset import read_lines
    from wsssfast.data.voc import CLASS_NAMES as VOC

    if classes is None:
        raise WsssError(
            "Expected the class names.", "Give --classes voc, coco, or a file of names."
        )
    if classes in ("voc", "coco"):
        return VOC if classes == "voc" else COCO
    names = tuple(read_lines(Path(classes), "class names"))
    if not names or len(set(names)) != len(names):
        raise WsssError(f"Expected class names in {classes}, each once, found {len(names)} lines.")
    return names
