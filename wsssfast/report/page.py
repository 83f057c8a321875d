"""The page: template, style and what they need, escaped by jinja2."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from wsssfast.report import charts
from wsssfast.report.colours import HEAT, css

MOST_LISTED = 50  # inputs that could not be read
_TEMPLATES = Path(__file__).parent / "templates"


def render(**content: Any) -> str:
    """The HTML of a report.

    Args:
        content: what `templates/page.html` names; all text in it is escaped.
    """
    return environment().get_template("page.html").render(**content)


def environment() -> Environment:
    """Where the templates are, and what all of them know."""
    found = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals.update(plot=charts, heat=[css(colour) for colour in HEAT])
    found.filters["percent"] = lambda fraction: f"{100 * fraction:.2f}"
    found.filters["signed"] = lambda fraction: f"{100 * fraction:+.2f}".replace("-", "\u2212")
    return found
