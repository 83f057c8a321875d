"""`wsssfast demo`."""

from pathlib import Path

import click

from wsssfast.cli.options import json_option, table, write_json
from wsssfast.cli.paths import FILE


@click.command()
@click.option(
    "--out", type=FILE, default=Path("demo-out"), show_default=True, help="Folder of the results."
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Of the classifier's training.",
)
@json_option
def demo(out: Path, seed: int, json_path: str | None) -> None:
    """Everything from image labels to masks, on the embedded data set.

    Nothing is downloaded. Interrupted, the same command goes on.

    \b
    Example:
      wsssfast demo --out demo-out --json demo.json
    """  # fmt: skip
    from wsssfast.demo import run_demo

    result = run_demo(out, seed, lambda text: click.echo(text, err=True))
    write_json(result.to_json(), json_path)
    if json_path != "-":
        rows = [
            [stage, f"{100 * miou:.1f}", f"{result.thresholds[stage]:.2f}"]
            for stage, miou in result.stages.items()
        ]
        rows.append(["segmenter trained on the pseudo-labels", f"{100 * result.segmenter:.1f}", ""])
        table(
            "Unseen synthetic scenes; CAMs with each stage at its best threshold",
            ["stage", "mIoU %", "threshold"],
            rows,
        )
        click.echo(
            f"Pseudo-labels of the training scenes: {100 * result.labels:.1f} % mIoU; after a walk "
            f"over learned affinities {100 * result.walked:.1f} %."
        )
        times = ", ".join(f"{step} {value:.0f} s" for step, value in result.seconds.items())
        click.echo(f"Time: {times}.")
        click.echo(f"The report is at {result.report.resolve()}, its masks at")
        click.echo(f"{result.report.with_name('masks.html').resolve()}")
