"""Command line options from the fields of a dataclass: names, types, defaults and help once."""

import inspect
import re
import typing
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, Literal, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
_TYPES: dict[Any, Any] = {int: click.INT, float: click.FLOAT, str: click.STRING}


def field_options(source: type) -> Callable[[F], F]:
    """An option for every field of a dataclass, described as its docstring's Attributes say.

    Args:
        source: a dataclass of int, float, str, bool and Literal fields that all have defaults.
    """
    texts = attribute_texts(source)
    kinds = typing.get_type_hints(source)

    def decorate(command: F) -> F:
        for field in reversed(fields(source)):
            kind, flag = kinds[field.name], field.name.replace("_", "-")
            assert field.default is not MISSING
            text = texts[field.name]
            text = text[0].upper() + text[1:]
            if kind is bool:
                names, chosen = f"--{flag}/--no-{flag}", None
            elif typing.get_origin(kind) is Literal:
                names, chosen = f"--{flag}", click.Choice(typing.get_args(kind))
            else:
                names, chosen = f"--{flag}", _TYPES[kind]
            command = click.option(
                names, field.name, type=chosen, default=field.default, show_default=True, help=text
            )(command)
        return command

    return decorate


def attribute_texts(source: type) -> dict[str, str]:
    """What the Attributes sections of a class and its bases say of each field."""
    texts: dict[str, str] = {}
    for base in reversed(source.__mro__):
        section = (inspect.getdoc(base) or "").partition("Attributes:\n")[2]
        for name, text in re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section, re.M):
            texts[name] = " ".join(text.split())
    return texts


def pick_fields(source: type, values: dict[str, Any]) -> dict[str, Any]:
    """The entries of `values` that are fields of a dataclass."""
    return {field.name: values[field.name] for field in fields(source)}
