"""`wsssfast price`."""

from typing import Any

import click

from wsssfast.bench.options import parse_sizes
from wsssfast.cli.options import (
    config_option,
    device_option,
    json_option,
    pick_device,
    progress,
    table,
    write_json,
)
from wsssfast.errors import WORKER_FAILED, WsssError
from wsssfast.parse import parts_of


@click.command()
@click.option("--stages", default="all", show_default=True, help="Which, separated by commas.")
@click.option(
    "--arch", default="deit_small_patch16_224", show_default=True, help="The classifier's backbone."
)
@click.option(
    "--trunk", default="resnet38", show_default=True,
    help="Of AffinityNet and segmenter: resnet38, vit, or a convolutional network of timm.",
)  # fmt: skip
@click.option("--classes", default=20, show_default=True, help="Of the data set.")
@click.option("--images", default=10582, show_default=True, help="Trained on and labelled.")
@click.option("--test-images", default=1449, show_default=True, help="Segmented.")
@click.option("--size", default="375x500", show_default=True, help="HxW of an image.")
@click.option(
    "--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True,
    help="Of training and export.",
)  # fmt: skip
@click.option("--seconds", default=10.0, show_default=True, help="To measure each stage for.")
@device_option
@json_option
@config_option
def price(
    stages: str, arch: str, size: str, device: str, json_path: str | None, **others: Any
) -> None:
    """Measure what every stage of the pipeline costs here: the paper's Table 1 for this machine.

    MACs and parameters of the networks, images/s on random images, the hours that a data set of
    that size takes at this speed with the published epochs, and peak memory. Exit code 5 where a
    stage could not run.

    \b
    Example:
      wsssfast price --arch deit_tiny_patch16_224 --trunk vit
    """  # fmt: skip
    from wsssfast.bench.pipeline import STAGES, PriceOptions, rows, to_json
    from wsssfast.bench.pipeline import price as measure
    from wsssfast.bench.report import machine

    chosen = STAGES if stages == "all" else tuple(parts_of(stages))
    sizes = parse_sizes(size)
    if len(sizes) != 1:
        raise WsssError(f"Expected one size HxW, found {size[:40]!r}.", "Such as --size 375x500.")
    place = pick_device(device)
    options = PriceOptions(stages=chosen, arch=arch, size=sizes[0], device=place, **others)
    with progress("price", len(chosen)) as advance:
        found = measure(options, advance, advance.begin)
    about = machine(place)
    write_json({**about, **to_json(options, found)}, json_path)
    if json_path != "-":
        header = ["stage", "network", "GMACs", "M params", "images/s", "hours", "MB"]
        title = (
            f"{about['device']}, {about['threads']} threads; {options.images} images of "
            f"{options.size[1]}x{options.size[0]}, {options.classes} classes"
        )
        table(title, header, rows(found))
        hours = sum(one.hours for one in found)
        click.echo(f"{hours:.1f} hours in all, as measured for {options.seconds:g} s a stage.")
    failed = [one for one in found if one.error]
    if failed:
        raise WsssError(
            f"Expected every stage to run; {len(failed)} did not: {failed[0].stage}: "
            f"{failed[0].error}.",
            code=WORKER_FAILED,
        )
