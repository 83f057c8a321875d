"""mIoU of CAM labels and of the dense CRF's, settings chosen on one half; ends in one JSON line.

Every background score and exponent is tried on every image, side by side over one pair of
lattices. The setting that is best on the even half of the sorted ids is reported on the odd half.

    python benchmarks/crf_quality.py --cams cams --dataset voc --data-root VOCdevkit/VOC2012 \\
        --split val --stage final
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from wsssfast.bench.report import machine
from wsssfast.data import open_dataset
from wsssfast.data.dataset import IGNORE
from wsssfast.kernels import Pairwise, dense_crf
from wsssfast.pseudo_labels import energies
from wsssfast.shards import CamShards

SCORES = tuple(round(0.1 + 0.05 * n, 2) for n in range(13))  # 0.1 to 0.7
EXPONENTS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0)
SETTINGS = tuple(f"score {s:g}" for s in SCORES) + tuple(f"exponent {a:g}" for a in EXPONENTS)


def all_scores(cam: torch.Tensor) -> torch.Tensor:
    """[settings, 1 + K, H, W]."""
    rest = 1 - cam.amax(0, keepdim=True)
    backgrounds = [torch.full_like(rest, score) for score in SCORES]
    backgrounds += [rest**exponent for exponent in EXPONENTS]
    return torch.stack([torch.cat([background, cam]) for background in backgrounds])


def confusion(scores: torch.Tensor, classes: np.ndarray, truth: np.ndarray, of: int) -> np.ndarray:
    """Counts int64 [settings, of, of] of (truth, found)."""
    valid = truth != IGNORE
    wanted = truth[valid].astype(np.int64)
    counts = [
        np.bincount(wanted * of + classes[one.argmax(0).numpy()[valid]], minlength=of * of)
        for one in scores
    ]
    return np.stack(counts).reshape(len(scores), of, of)


def miou(counts: np.ndarray) -> np.ndarray:
    """Of counts [settings, C, C]; classes that are nowhere are left out."""
    hits = np.diagonal(counts, axis1=1, axis2=2)
    union = counts.sum(1) + counts.sum(2) - hits
    return np.nanmean(np.where(union > 0, hits / np.maximum(union, 1), np.nan), axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cams", type=Path, required=True)
    parser.add_argument("--dataset", default="voc")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--split")
    parser.add_argument("--stage", default="final")
    parser.add_argument(
        "--constants",
        default="3,3,80,13,10",
        help="Gaussian sxy, compat, bilateral sxy, srgb, compat",
    )
    parser.add_argument("--every", type=int, default=1, help="of the images, one in so many")
    args = parser.parse_args()
    shards = CamShards(args.cams)
    dataset = open_dataset(args.dataset, args.data_root, args.split)
    ids = sorted(i for i in shards if i in dataset.by_id)[:: args.every]
    pairwise = Pairwise(*map(float, args.constants.split(",")))
    of = len(shards.class_names) + 1
    totals = {name: np.zeros((2, len(SETTINGS), of, of), np.int64) for name in ("cam", "crf")}
    for n, image_id in enumerate(ids):
        item = dataset.by_id[image_id]
        truth = dataset.load_mask(item)
        labels, cam = shards.cam(image_id, args.stage)
        classes = np.array([0, *(label + 1 for label in labels.tolist())])
        scores = (
            all_scores(torch.from_numpy(cam))
            if len(labels)
            else torch.zeros(len(SETTINGS), 1, *truth.shape)
        )
        image = torch.from_numpy(np.array(dataset.load_image(item)))
        refined = dense_crf([image], [energies(scores)], pairwise)[0]
        totals["cam"][n % 2] += confusion(scores, classes, truth, of)
        totals["crf"][n % 2] += confusion(refined, classes, truth, of)
    found = {}
    for name, (even, odd) in totals.items():
        on_even, on_odd = miou(even), miou(odd)
        found[name] = {
            kind: {
                "chosen": SETTINGS[best],
                "even": round(float(on_even[best]), 4),
                "odd": round(float(on_odd[best]), 4),
                "best_possible_on_odd": round(float(on_odd[part].max()), 4),
            }
            for kind, part in (
                ("score", slice(0, len(SCORES))), ("exponent", slice(len(SCORES), None))
            )
            for best in [part.start + int(on_even[part].argmax())]
        }  # fmt: skip
    print(json.dumps({
        "benchmark": "crf_quality", **machine("cpu"), "stage": args.stage,
        "constants": args.constants,
        "images": len(ids),
        "odd_half": len(ids) // 2, "miou": found,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
