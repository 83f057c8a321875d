"""Shards: the store between the stages of the pipeline (docs/shards.md)."""

from wsssfast.shards.label_shards import LabelRecord, LabelShards, write_label_shard
from wsssfast.shards.reader import CamShards, Grids, open_shards
from wsssfast.shards.verify import Verdict, verify_shards
from wsssfast.shards.writer import CamRecord, write_cam_shard

__all__ = [
    "CamRecord",
    "CamShards",
    "Grids",
    "LabelRecord",
    "LabelShards",
    "Verdict",
    "open_shards",
    "verify_shards",
    "write_cam_shard",
    "write_label_shard",
]
