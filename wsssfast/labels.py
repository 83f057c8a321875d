"""`export-labels`: masks from CAM shards into label shards, resumably."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wsssfast.errors import WsssError
from wsssfast.shards.format import FORMAT_VERSION, Sidecar, stored_bytes
from wsssfast.shards.label_shards import LabelRecord, write_label_shard
from wsssfast.shards.lock import folder_lock
from wsssfast.shards.reader import CamShards
from wsssfast.shards.resume import ExportSummary, done_shards, telling_full_disk
from wsssfast.versions import versions

_OF = "cams_sha256"  # key of a label shard's config: the file that it was made from


@dataclass(frozen=True)
class LabelOptions:
    """How masks are made from CAMs; every field changes the numbers.

    Attributes:
        stage: of the CAM shards.
        background: one background score, or two, low < high, between which a pixel is ignored; as
            `wsssfast.threshold.threshold` takes them.
        refine: what is done to the CAM before; nothing yet.
    """

    stage: str
    background: tuple[float, ...]
    refine: Literal["none"] = "none"

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip(self.background, self.background[1:], strict=False))
        if (
            len(self.background) not in (1, 2)
            or not all(0 <= score <= 1 for score in self.background)
            or not ascending
        ):
            raise WsssError(
                "Expected one background threshold in [0, 1], or two, the lower first, found "
                f"{','.join(f'{score:g}' for score in self.background) or 'none'}."
            )

    def to_json(self) -> dict[str, Any]:
        """Every field as plain JSON types."""
        return {**vars(self), "background": list(self.background)}


def label_identity(shards: CamShards, options: LabelOptions) -> dict[str, Any]:
    """Configuration identity of label shards: their options and, as cams.*, that of the CAMs."""
    cams = {key: value for key, value in shards.identity.items() if key != "class_names"}
    return {
        "format_version": FORMAT_VERSION,
        "class_names": list(shards.class_names),
        **options.to_json(),
        **{f"cams.{key}": value for key, value in cams.items()},
    }


def export_labels(
    shards: CamShards,
    out: Path,
    options: LabelOptions,
    *,
    resume: bool = True,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda images: None,
) -> ExportSummary:
    """Make a label shard of each CAM shard: the same images, number and count.

    A label shard that is done is skipped, and redone only if its CAM shard was.

    Args:
        shards: the CAMs; those of their shards that are missing are left out.
        out: folder of the label shards; made where absent.
        options: how masks are made.
        resume: whether a folder that holds shards of this configuration is continued.
        overwrite: discard the label shards in `out` first.
        progress: called with a number of images each time some are finished.

    Returns:
        What was done; `failed` are the images that have no CAM.

    Raises:
        WsssError: an unknown stage, `out` holds another configuration, a damaged CAM shard, or the
            disk is full.
    """
    shards.require_stage(options.stage)
    identity = label_identity(shards, options)
    summary = ExportSummary()
    with folder_lock(out):
        done = done_shards(out, "labels", identity, resume=resume, overwrite=overwrite)
        for index, source in shards.sidecars.items():
            finished = done.get(index)
            if finished and _belongs(finished, source):
                summary.add(finished, written=False)
                progress(len(finished.ids))
                continue
            records = []
            for image_id in source.ids:
                mask = shards.mask(image_id, options.background, options.stage)
                records.append(LabelRecord.of(image_id, shards.labels(image_id).tolist(), mask))
                progress(1)
            with telling_full_disk(out, summary):
                finished = write_label_shard(
                    out, index, source.count, records, failed=source.failed, identity=identity,
                    config={**options.to_json(), "cams": source.config, _OF: source.file_sha256},
                    versions=versions("numpy", "h5py"),
                )  # fmt: skip
            summary.add(finished, written=True)
    summary.bytes = stored_bytes(out, "labels")
    return summary


def _belongs(labels: Sidecar, cams: Sidecar) -> bool:
    """Whether a label shard was made from a CAM shard as it is now."""
    return (labels.config.get(_OF), labels.failed) == (cams.file_sha256, cams.failed)
