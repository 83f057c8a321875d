"""`wsssfast bench`."""

import json
from typing import TYPE_CHECKING

import click

from wsssfast.bench.options import (
    PRECISIONS,
    WHAT,
    BenchOptions,
    parse_counts,
    parse_names,
    parse_sizes,
)
from wsssfast.cli.options import (
    config_option,
    device_option,
    json_option,
    pick_device,
    progress,
    refuse,
    table,
    write_json,
)
from wsssfast.errors import WORKER_FAILED, WsssError

if TYPE_CHECKING:
    from wsssfast.bench.tune import Tuned


@click.command()
@click.option(
    "--what",
    default="forward,operations",
    show_default=True,
    help="The export forward, each operation alone, or both.",
)
@click.option(
    "--arch",
    default="deit_small_patch16_224",
    show_default=True,
    help="A plain ViT of timm; its weights are random.",
)
@click.option("--classes", default=20, show_default=True, help="Class tokens of the network.")
@click.option(
    "--per-image", default=2, show_default=True, help="Classes of each image, which are refined."
)
@click.option(
    "--size",
    "sizes",
    default="224x224,500x375,768x768",
    show_default=True,
    help="Image sizes HxW, separated by commas.",
)
@click.option(
    "--batch",
    "batches",
    default="",
    help="Images at a time, separated by commas.  [default: 1; 1,16,64 on a GPU]",
)
@click.option(
    "--precision",
    "precisions",
    default="",
    help="Of the network, separated by commas.  [default: fp32; all on a GPU]",
)
@device_option
@click.option(
    "--seconds",
    default=5.0,
    show_default=True,
    help="Time to measure a case for; at least five turns of each contender.",
)
@click.option(
    "--limit",
    default=0.0,
    show_default=True,
    help="Seconds after which no further case is begun; 0: none.",
)
@click.option(
    "--memory/--no-memory",
    default=True,
    show_default=True,
    help="Measure peak memory too; on CPU each contender in a fresh process.",
)
@click.option(
    "--compile/--no-compile",
    "compiled",
    default=True,
    show_default=True,
    help="On a GPU, torch.compile of the peers takes part.",
)
@click.option(
    "--tune",
    "tuning",
    is_flag=True,
    help="Search faster launch settings for this GPU instead, and keep them.",
)
@json_option
@config_option
@click.pass_context
def bench(
    ctx: click.Context,
    what: str,
    arch: str,
    classes: int,
    per_image: int,
    sizes: str,
    batches: str,
    precisions: str,
    device: str,
    seconds: float,
    limit: float,
    memory: bool,
    compiled: bool,
    tuning: bool,
    json_path: str | None,
) -> None:
    """Time the kernels, and the whole export forward, against what PyTorch users have today.

    Contenders take turns on the same random images: the network with PyTorch's own attention and
    no attention maps (the floor, ratio 1), ours, attention stacked as in MCTformer's public code,
    and attention computed once more by layer. Prints a table, and everything as one JSON line.
    Exit code 5 where a contender raised an error; one that runs out of memory is only listed.

    \b
    Example:
      wsssfast bench --what forward --size 224x224,500x375 --batch 1
    """  # fmt: skip
    options = BenchOptions(
        what=parse_names(what, WHAT),
        arch=arch,
        classes=classes,
        per_image=per_image,
        sizes=parse_sizes(sizes),
        batches=parse_counts(batches),
        precisions=parse_names(precisions, PRECISIONS),
        device=pick_device(device),
        seconds=seconds,
        limit=limit,
        memory=memory,
        compiled=compiled,
    )
    if tuning:
        refuse(ctx, ["what", "seconds", "limit", "memory", "compiled"], against="--tune")
        _tune(options, json_path)
        return
    from wsssfast.bench.report import HEADER, failures, table_rows
    from wsssfast.bench.run import bench as measure
    from wsssfast.bench.run import specs_of

    with progress("bench", len(specs_of(options))) as advance:
        found = measure(options, advance, advance.begin)
    write_json(found.summary, json_path)
    if json_path != "-":
        title = f"{found.summary['device']}, {found.summary['threads']} threads"
        table(title, HEADER, table_rows(found.rows))
        click.echo(json.dumps(found.summary))
    failed = failures(found.rows)
    if failed:
        raise WsssError(
            f"Expected every contender to run; {len(failed)} did not: {failed[0].contender} at "
            f"{failed[0].what} {failed[0].size} {failed[0].note}",
            code=WORKER_FAILED,
        )


def _tune(options: BenchOptions, json_path: str | None) -> None:
    from wsssfast.bench.report import machine
    from wsssfast.bench.tune import launches_of, require_kernels
    from wsssfast.bench.tune import tune as search

    require_kernels(options.device)
    with progress("tune", len(launches_of(options))) as advance:
        found = search(options, advance, advance.begin)
    summary = {**machine(options.device), "tuned": [one.to_json() for one in found]}
    write_json(summary, json_path)
    if json_path != "-":
        header = ["kernel", "patches", "bits", "before ms", "after ms", "tried", "kept", "settings"]
        table(summary["device"], header, [_tuned_row(one) for one in found])
        click.echo(json.dumps(summary))


def _tuned_row(one: "Tuned") -> list[str]:
    settings = " ".join(f"{key} {value}" for key, value in one.settings.items())
    return [
        one.kernel, str(one.patches), str(one.bits), f"{one.before_ms:.4g}", f"{one.after_ms:.4g}",
        f"{one.tried} ({one.failed} failed)", "yes" if one.kept else "no", settings,
    ]  # fmt: skip
