"""mIoU of labels from CAM to CRF and walk, settings chosen on one half; ends in one JSON line.

Every background score and exponent is tried on every image, side by side over one pair of
lattices. The setting that is best on the even half of the sorted ids is reported on the odd half.
With `--affinity` scores walk over an AffinityNet's affinities, with `--checkpoint` over that
classifier's own attention; `--then-crf` refines what walked.

    python benchmarks/label_quality.py --cams cams --dataset voc --data-root VOCdevkit/VOC2012 \\
        --split val --stage final --affinity affinity/last.safetensors --walks 8:64
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wsssfast.bench.arguments import data_arguments, opened
from wsssfast.bench.report import machine
from wsssfast.cam_options import CamOptions
from wsssfast.compute import captures, near_affinities, prepare
from wsssfast.evaluate.labels import LabelScorer
from wsssfast.kernels import Pairwise, dense_crf
from wsssfast.labels.options import LabelOptions, Walk
from wsssfast.labels.rules import energies
from wsssfast.labels.walk import Affinity, seen_by, walked
from wsssfast.models.checkpoint import load_affinity, load_model
from wsssfast.shards import CamShards

SCORES = tuple(round(0.1 + 0.05 * n, 2) for n in range(13))  # 0.1 to 0.7
EXPONENTS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0)
SETTINGS = tuple(f"score {s:g}" for s in SCORES) + tuple(f"exponent {a:g}" for a in EXPONENTS)


def all_scores(cam: torch.Tensor, options: object = None) -> torch.Tensor:
    """[settings, 1 + K, H, W]."""
    rest = 1 - cam.amax(0, keepdim=True)
    backgrounds = [torch.full_like(rest, score) for score in SCORES]
    backgrounds += [rest**exponent for exponent in EXPONENTS]
    return torch.stack([torch.cat([background, cam]) for background in backgrounds])


class Steps:
    """All that is done to the scores of an image, by name."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.pairwise = Pairwise(*map(float, args.constants.split(",")))
        self.walks = [tuple(map(float, walk.split(":"))) for walk in args.walks.split(",")]
        self.net = load_affinity(args.affinity) if args.affinity else None
        self.model = load_model(args.checkpoint) if args.checkpoint else None
        self.crf, self.then_crf, self.certainty = args.crf, args.then_crf, args.certainty

    def __call__(self, cam: torch.Tensor, image: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and scores [settings, 1 + K, H, W]."""
        scores, pixels = all_scores(cam), torch.from_numpy(np.array(image))
        yield "cam", scores
        if self.crf:
            yield "crf", self.refined(pixels, scores)
        for name, affinity in self.affinities(image, pixels):
            for beta, steps in self.walks:
                options = LabelOptions(
                    "final", (0.5,), refine="affinity", walk=Walk("", beta, int(steps))
                )
                found = walked(cam, affinity, options, all_scores)
                yield f"{name} {beta:g}:{steps:g}", found
                if self.then_crf:
                    yield f"{name} {beta:g}:{steps:g} + crf", self.refined(pixels, found)

    def affinities(self, image: Any, pixels: torch.Tensor) -> Iterator[tuple[str, Affinity]]:
        """What can be walked over."""
        if self.net:
            yield "affinity", seen_by(self.net, pixels)
        if self.model:
            options = CamOptions()
            seen = [prepare(image, options, self.model.patch_size)]
            with torch.inference_mode():
                ((captured, _),) = captures(self.model, seen, [(0,)], options)
                yield "vit", Affinity(near_affinities(captured, 1)[0])

    def refined(self, pixels: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """After the CRF."""
        return dense_crf([pixels], [energies(scores, self.certainty)], self.pairwise)[0]


def best_of(even: list[LabelScorer], odd: list[LabelScorer]) -> dict[str, Any]:
    """The settings that are best on the even half, and their mIoU on both."""
    on_even, on_odd = ([one.result()["miou"] for one in half] for half in (even, odd))
    parts = {"score": range(len(SCORES)), "exponent": range(len(SCORES), len(SETTINGS))}
    chosen = {kind: max(part, key=on_even.__getitem__) for kind, part in parts.items()}
    return {
        kind: {
            "chosen": SETTINGS[best],
            "even": round(on_even[best], 4),
            "odd": round(on_odd[best], 4),
            "best_possible_on_odd": round(max(on_odd[n] for n in parts[kind]), 4),
        }
        for kind, best in chosen.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cams", type=Path, required=True)
    data_arguments(parser)
    parser.add_argument("--stage", default="final")
    parser.add_argument(
        "--constants",
        default="3,3,80,13,10",
        help="Gaussian sxy, compat, bilateral sxy, srgb, compat",
    )
    parser.add_argument("--certainty", type=float, help="CRFs start from masks (IRN: 0.7)")
    parser.add_argument("--crf", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--then-crf", action="store_true")
    parser.add_argument("--affinity", type=Path, help="checkpoint of train-affinity")
    parser.add_argument("--checkpoint", type=Path, help="classifier whose attention is walked over")
    parser.add_argument("--walks", default="8:64", help="beta:steps, separated by commas")
    parser.add_argument("--every", type=int, default=1, help="of the images, one in so many")
    args = parser.parse_args()
    shards = CamShards(args.cams)
    dataset = opened(args)
    ids = [i for i in sorted(shards) if i in dataset.by_id and len(shards.labels(i))][:: args.every]
    scorers: dict[str, list[list[LabelScorer]]] = {}
    steps = Steps(args)
    for n, image_id in enumerate(ids):
        item = dataset.by_id[image_id]
        truth = dataset.load_mask(item)
        labels, cam = shards.cam(image_id, args.stage)
        classes = np.array([0, *(labels + 1)], np.uint8)
        for name, scores in steps(torch.from_numpy(cam), dataset.load_image(item)):
            halves = scorers.setdefault(
                name, [[LabelScorer(shards.class_names) for _ in SETTINGS] for _ in range(2)]
            )
            for scorer, decided in zip(halves[n % 2], scores.argmax(1).numpy(), strict=True):
                scorer.add(classes[decided], truth)
    print(json.dumps({
        "benchmark": "label_quality", **machine("cpu"), "stage": args.stage,
        "constants": args.constants, "certainty": args.certainty, "images": len(ids),
        "odd_half": len(ids) // 2,
        "miou": {name: best_of(*halves) for name, halves in scorers.items()},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
