"""JSON and TOML of unknown origin: whatever is wrong with a text is a ValueError. And lists."""

import json
import tomllib
from collections.abc import Callable
from typing import Any


def json_of(text: str | bytes) -> Any:
    """What a text of JSON says.

    Raises:
        ValueError: it is none, or its brackets go deeper than Python's stack.
    """
    return _parsed(json.loads, text)


def toml_of(text: str) -> dict[str, Any]:
    """What a text of TOML says.

    Raises:
        ValueError: it is none, or its brackets go deeper than Python's stack.
    """
    found: dict[str, Any] = _parsed(tomllib.loads, text)
    return found


def what_fails(error: Exception) -> str:
    """What reading a file of JSON ended with: a missing key is told in words."""
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)


def parts_of(text: str) -> list[str]:
    """What commas separate, without space around and without what is empty."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _parsed(parse: Callable[[Any], Any], text: str | bytes) -> Any:
    try:
        return parse(text)
    except RecursionError as error:
        raise ValueError("its brackets go too deep") from error
