"""JSON and TOML of unknown origin: whatever is wrong with a text is a ValueError."""

import json
import tomllib
from typing import Any


def json_of(text: str | bytes) -> Any:
    """What a text of JSON says.

    Raises:
        ValueError: it is none, or its brackets go deeper than Python's stack.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its brackets go too deep") from error


def toml_of(text: str) -> dict[str, Any]:
    """What a text of TOML says.

    Raises:
        ValueError: it is none, or its brackets go deeper than Python's stack.
    """
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("its brackets go too deep") from error
