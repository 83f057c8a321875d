"""`wsssfast demo`."""

from pathlib import Path

import click

from wsssfast.cli.options import FILE, json_option, table, write_json


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
    """Train, export and score on the embedded data set: nothing to download, about two minutes.

    \b
    Example:
      wsssfast demo --out demo-out --json demo.json
    """  # fmt: skip
    from wsssfast.demo import run_demo

    result = run_demo(out, seed, lambda text: click.echo(text, err=True))
    write_json(result.to_json(), json_path)
    if json_path != "-":
        table(
            "CAMs of unseen synthetic scenes, each stage at its best threshold",
            ["stage", "mIoU %", "threshold"],
            [
                [stage, f"{100 * miou:.1f}", f"{result.thresholds[stage]:.2f}"]
                for stage, miou in result.stages.items()
            ],
        )
        times = ", ".join(f"{step} {value:.0f} s" for step, value in result.seconds.items())
        click.echo(f"Time: {times}.")
        click.echo(f"The report is at {result.report.resolve()}")
