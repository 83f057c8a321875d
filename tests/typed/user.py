"""A user's script, for `mypy --strict` in `make lint`: what is public has types; never run."""

from pathlib import Path
from typing import assert_type

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import wsssfast
from wsssfast import kernels
from wsssfast.cam_options import CamOptions
from wsssfast.data import Dataset, open_dataset
from wsssfast.export import export_cams
from wsssfast.models.classifier import ClassTokenViT
from wsssfast.shards import (
    CamShards,
    LabelRecord,
    LabelShards,
    Verdict,
    verify_shards,
    write_label_shard,
)
from wsssfast.shards.format import Sidecar
from wsssfast.shards.resume import ExportSummary

model = wsssfast.load_model("classifier.safetensors")
assert_type(model, ClassTokenViT)
image = Image.new("RGB", (64, 48))
options = CamOptions(stages=("final",), ratio=0.3, alpha=1.2)
found = wsssfast.cams(model, [image, np.zeros((48, 64, 3), np.uint8)], [["dog"], [3]], options)
assert_type(found, list[NDArray[np.float32]])
assert_type(wsssfast.mask_of(model, found[0], ["dog"], (0.3, 0.5)), NDArray[np.uint8])
assert_type(wsssfast.overlay(image, found[0][0]), Image.Image)

dataset = open_dataset("voc", Path("VOCdevkit/VOC2012"), "train_aug")
assert_type(dataset, Dataset)
assert_type(export_cams(model, dataset, Path("cams"), options), ExportSummary)
shards = wsssfast.open_shards("cams")
assert_type(shards.ids, tuple[str, ...])
assert_type(CamShards("cams").cam("im0"), tuple[NDArray[np.int64], NDArray[np.float32]])
assert_type(CamShards("cams").mask("im0", (0.3, 0.5)), NDArray[np.uint8])
assert_type(LabelShards("labels").mask("im0"), NDArray[np.uint8])
record = LabelRecord.of("im0", [0], np.ones((48, 64), np.uint8))
assert_type(write_label_shard("mine", 0, 1, [record], identity={"class_names": ["cat"]}), Sidecar)
assert_type(verify_shards("mine"), Verdict)
assert_type(open_dataset("folder", "photos"), Dataset)

with wsssfast.AttentionHook(model) as hook:
    model(torch.zeros(1, 3, 224, 224))
c2p, p2p = hook.attention()
assert_type((c2p, p2p), tuple[Tensor, Tensor])
refined = kernels.refine(torch.rand(1, 20, 196), c2p, p2p, ["final"], ratio=0.3, alpha=1.2)
assert_type(refined, dict[str, Tensor])

try:
    wsssfast.load_model("missing.safetensors")
except wsssfast.WsssError as error:
    assert_type(error.remedy, str)
