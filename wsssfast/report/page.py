"""The page: template, style and what they need, escaped by jinja2."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from wsssfast.files import publish
from wsssfast.report import charts
from wsssfast.report.colours import HEAT, css

MOST_LISTED = 50  # inputs that could not be read
_TEMPLATES = Path(__file__).parent / "templates"


def write_page(out: Path, template: str, **content: Any) -> None:
    """Write one self-contained HTML file; equal content gives an equal file.

    Args:
        out: the file; its folder is made.
        template: of the templates' folder.
        content: what the template names; all text in it is escaped, and so are the bytes of file
            names that are not UTF-8.
    """
    text = environment().get_template(template).render(most_listed=MOST_LISTED, **content)
    out.parent.mkdir(parents=True, exist_ok=True)
    publish(out, lambda partial: partial.write_bytes(text.encode(errors="backslashreplace")))


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
