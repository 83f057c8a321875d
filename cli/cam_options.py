"""The options that say how a CAM is computed: one spelling for every command that computes some."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from wsssfast.parse import parts_of

F = TypeVar("F", bound=Callable[..., Any])


def numbers(ctx: click.Context, param: click.Parameter, text: str) -> tuple[float, ...]:
    """Callback of options that take numbers separated by commas."""
    try:
        found = tuple(float(part) for part in parts_of(text))
        if not found:
            raise ValueError("none")
        return found
    except ValueError as error:
        raise click.BadParameter(f"expected numbers separated by commas, found {text!r}") from error


def cam_options(command: F) -> F:
    """Ratio, alpha, scales, flip, orientation, ranking, layers and precision."""
    for option in reversed(
        (
            click.option(
                "--ratio", default=0.3, show_default=True, help="Share of related patches."
            ),
            click.option(
                "--alpha", default=1.2, show_default=True, help="Weight of the related mean."
            ),
            click.option(
                "--scales",
                default="1.0",
                show_default=True,
                callback=numbers,
                help="Image scales, separated by commas; summed.",
            ),
            click.option(
                "--flip/--no-flip",
                default=True,
                show_default=True,
                help="Sum the mirror image too.",
            ),
            click.option(
                "--propagation",
                type=click.Choice(["gather", "scatter", "geometric"]),
                default="gather",
                show_default=True,
                help="Eq. 6 as MCTformer computes it, to the letter, or the mean of both ways.",
            ),
            click.option(
                "--related-by",
                type=click.Choice(["attention", "tokens"]),
                default="attention",
                show_default=True,
                help="What ranks the related patches.",
            ),
            click.option(
                "--fuse",
                type=click.Choice(["product", "sqrt"]),
                default="product",
                show_default=True,
                help="What joins CAM and attention: Eq. 5, or its root (MCTformer+).",
            ),
            click.option(
                "--c2p-layers",
                default=3,
                show_default=True,
                help="Last layers of the class-to-patch attention.",
            ),
            click.option(
                "--p2p-layers",
                default=12,
                show_default=True,
                help="Last layers of the patch-to-patch attention.",
            ),
            click.option(
                "--include-self/--exclude-self",
                default=True,
                show_default=True,
                help="Whether a patch may be related to itself.",
            ),
            click.option(
                "--precision",
                type=click.Choice(["fp32", "bf16", "fp16"]),
                default="fp32",
                show_default=True,
                help="Of the network; maps are float32.",
            ),
        )
    ):
        command = option(command)
    return command
