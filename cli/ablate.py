"""`wsssfast ablate`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsssfast.cli.cam_options import cam_options, numbers
from wsssfast.cli.options import (
    FILE,
    config_option,
    dataset_options,
    device_option,
    finish,
    json_option,
    pick_device,
    progress,
    table,
    write_json,
)
from wsssfast.errors import WsssError

if TYPE_CHECKING:
    from wsssfast.ablate import Setting


@click.command()
@dataset_options
@click.option("--checkpoint", type=FILE, required=True, help="Trained classifier.")
@click.option(
    "--ratios",
    default="0.1,0.2,0.3,0.4,0.5",
    show_default=True,
    callback=numbers,
    help="Shares of related patches to try (Fig. 5).",
)
@click.option(
    "--alphas",
    default="0,0.6,0.8,1.0,1.2,1.4,1.6,1.8",
    show_default=True,
    callback=numbers,
    help="Weights of the related mean to try (Table 3); 0 is MCTformer-V2.",
)
@click.option(
    "--layers",
    default="1,3",
    show_default=True,
    callback=numbers,
    help="Last layers of the class-to-patch attention to try.",
)
@click.option("--grid", is_flag=True, help="Every ratio with every alpha, not one at a time.")
@cam_options
@device_option
@click.option("--batch-size", default=8, show_default=True, help="Most images a forward pass.")
@click.option("--decode-workers", default=2, show_default=True, help="Threads that decode images.")
@json_option
@config_option
def ablate(
    kind: str,
    root: Path | None,
    split: str | None,
    labels: Path | None,
    checkpoint: Path,
    ratios: tuple[float, ...],
    alphas: tuple[float, ...],
    layers: tuple[float, ...],
    grid: bool,
    device: str,
    batch_size: int,
    decode_workers: int,
    json_path: str | None,
    **method: Any,
) -> None:
    """Score stages, orientations, rankings, ratios and alphas in one pass over the images.

    Each setting is scored at its own best background threshold of 0.00 to 0.59, which is tuned on
    the masks that it is scored against. Nothing is stored but the scores.

    \b
    Example:
      wsssfast ablate --dataset voc --data-root VOCdevkit/VOC2012 --split train \\
          --checkpoint classifier.safetensors --json ablation.json
    """  # fmt: skip
    from wsssfast.ablate import ablate as score
    from wsssfast.ablate import settings_of
    from wsssfast.cam_options import CamOptions
    from wsssfast.data import open_dataset
    from wsssfast.export import require_classes
    from wsssfast.models.checkpoint import load_model, weights_hash

    base = CamOptions(**method)
    for ratio in ratios:
        CamOptions(ratio=ratio)
    for alpha in alphas:
        CamOptions(alpha=alpha)
    if not all(layer >= 1 and layer == int(layer) for layer in layers):
        raise WsssError(f"Expected whole numbers of layers, found {layers}.")
    wanted = dict.fromkeys([base.c2p_layers, *map(int, layers)])
    model = load_model(checkpoint)
    without_head = () if model.head is not None else ("original", "original+p2p")
    settings = [
        setting
        for setting in settings_of(
            base, ratios=ratios, alphas=alphas, c2p_layers=tuple(wanted), grid=grid
        )
        if setting.stage not in without_head
    ]
    dataset = open_dataset(kind, root, split, labels)
    require_classes(model, dataset)
    model.to(pick_device(device))
    with progress("ablate", len(dataset)) as advance:
        scores, failed = score(
            model, dataset, settings, base, batch_size=batch_size,
            decode_workers=decode_workers, progress=advance,
        )  # fmt: skip
    rows = [{**asdict(setting), **scores[setting]} for setting in settings]
    write_json(
        {"settings": rows, "base": base.to_json(), "weights": weights_hash(model),
         "dataset": dataset.name, "split": dataset.split, "unreadable": failed},
        json_path,
    )  # fmt: skip
    if json_path != "-":
        _tell(settings, scores, base.ratio, base.alpha)
    finish(failed)


def _tell(
    settings: "Sequence[Setting]",
    scores: "dict[Setting, dict[str, Any]]",
    ratio: float,
    alpha: float,
) -> None:
    images = scores[settings[0]]["images"]
    usual = [s for s in settings if s.ratio in (None, ratio) and s.alpha in (None, alpha)]
    table(
        f"Stages over {images} images, ratio {ratio:g}, alpha {alpha:g}",
        ["stage", "c2p layers", "propagation", "related by", "mIoU %", "threshold"],
        [
            [s.stage, _text(s.c2p_layers), _text(s.propagation), _text(s.related_by),
             f"{100 * scores[s]['miou']:.2f}", f"{scores[s]['threshold']:.2f}"]
            for s in usual
        ],
    )  # fmt: skip
    others = [s for s in settings if s.stage == "final"]
    table(
        "Final-CAM by ratio and alpha",
        ["ratio", "alpha", "c2p layers", "propagation", "related by", "mIoU %", "threshold"],
        [
            [_text(s.ratio), _text(s.alpha), _text(s.c2p_layers), _text(s.propagation),
             _text(s.related_by), f"{100 * scores[s]['miou']:.2f}", f"{scores[s]['threshold']:.2f}"]
            for s in others
        ],
    )  # fmt: skip
    click.echo("The thresholds were tuned on these masks.")


def _text(value: object) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
