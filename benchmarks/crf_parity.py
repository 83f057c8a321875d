"""How far the dense CRF's backends are from pydensecrf on real images; ends in one JSON line.

The unaries are those of labels: the scores of CAM shards and their background. Beside the
image's own classes, `--classes N` adds smooth random ones up to N. With `--exact K` every K-th
image is computed in float64 too, which says whose rounding it is.

    python benchmarks/crf_parity.py --cams cams --dataset voc --data-root VOCdevkit/VOC2012 \\
        --split val --images 100
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from wsssfast.bench.arguments import data_arguments, opened
from wsssfast.bench.report import machine
from wsssfast.kernels import Pairwise, crf_reference, dense_crf
from wsssfast.labels.rules import energies
from wsssfast.shards import CamShards

RECIPES = {  # background exponent, constants
    "mctformer-a1": (1.0, Pairwise()),
    "mctformer-a12": (12.0, Pairwise()),
    "test": (4.0, Pairwise(4, 3, 83, 5, 3)),
    "irn": (4.0, Pairwise(3, 3, 50, 5, 10)),
}


def unary(cam: np.ndarray, exponent: float, classes: int, seed: int) -> torch.Tensor:
    """Energies [max(K + 1, classes), H, W] of a CAM [K, H, W], a background and random classes."""
    known = torch.from_numpy(cam)
    scores = torch.cat([(1 - known.amax(0, keepdim=True)) ** exponent, known])
    if len(scores) < classes:
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(1, classes - len(scores), 6, 8, generator=generator)
        more = F.interpolate(coarse, scores.shape[1:], mode="bilinear")[0]
        scores = torch.cat([scores, 0.8 * more])
    return energies(scores)


def exact(image: torch.Tensor, energy: torch.Tensor, pairwise: Pairwise) -> torch.Tensor:
    terms = [
        (pairwise.gaussian_sxy, float("inf"), pairwise.gaussian_compat),
        (pairwise.bilateral_sxy, pairwise.bilateral_srgb, pairwise.bilateral_compat),
    ]
    return crf_reference.mean_field(image, energy.double(), terms, pairwise.iterations)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cams", type=Path, required=True)
    data_arguments(parser)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--classes", type=int, default=2, help="the least, background included")
    parser.add_argument("--backend", default="torch", choices=["torch", "triton"])
    parser.add_argument("--exact", type=int, default=0)
    args = parser.parse_args()
    shards = CamShards(args.cams)
    dataset = opened(args)
    ids = [i for i in shards if i in dataset.by_id and len(shards.labels(i))]
    ids = ids[:: max(1, len(ids) // args.images)][: args.images]
    rows = {}
    for name, (exponent, pairwise) in RECIPES.items():
        apart, rounding, same, pixels = [], [], 0, 0
        for n, image_id in enumerate(ids):
            image = torch.from_numpy(np.array(dataset.load_image(dataset.by_id[image_id])))
            energy = unary(shards.cam(image_id)[1], exponent, args.classes, n)
            found, peer = (
                dense_crf([image], [energy], pairwise, backend=backend)[0]
                for backend in (args.backend, "pydensecrf")
            )
            apart.append((found - peer).abs().max().item())
            same += int((found.argmax(0) == peer.argmax(0)).sum())
            pixels += found[0].numel()
            if args.exact and n % args.exact == 0:
                wanted = exact(image, energy, pairwise)
                rounding.append([(q - wanted).abs().max().item() for q in (found, peer)])
        rows[name] = {
            "largest_difference": float(f"{max(apart):.2e}"),
            "median_difference": float(f"{np.median(apart):.2e}"),
            "images_over_1e-4": sum(one > 1e-4 for one in apart),
            "argmax_equal": same / pixels,
        }
        if rounding:
            ours, theirs = np.array(rounding).max(0)
            rows[name]["from_float64"] = {
                args.backend: float(f"{ours:.2e}"),
                "pydensecrf": float(f"{theirs:.2e}"),
                "images": len(rounding),
            }
    print(json.dumps({
        "benchmark": "crf_parity", **machine("cpu"), "images": len(ids), "classes": args.classes,
        "crf_backend": args.backend, "recipes": rows,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
