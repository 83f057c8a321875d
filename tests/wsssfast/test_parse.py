"""Texts of unknown origin: whatever is wrong with them is a ValueError."""

import pytest

from wsssfast.errors import WsssError
from wsssfast.parse import json_of, toml_of
from wsssfast.reproduce import run_steps


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000, "", "{", b"\xff", "nan"])
def test_no_json(text):
    with pytest.raises(ValueError):
        json_of(text)


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 100_000, "a = {b = " * 50_000, "a", "a = 1\na = 2"]
)
def test_no_toml(text):
    with pytest.raises(ValueError):
        toml_of(text)


def test_what_is_json_and_toml():
    assert json_of(b'{"a": [1, null]}') == {"a": [1, None]}
    assert toml_of("a = [1]\n[b]\nc = 'd'") == {"a": [1], "b": {"c": "d"}}


@pytest.mark.parametrize("text", ["", "[1]", '{"a": "b"}', '{"a": null}', "[" * 200_000])
def test_a_damaged_list_of_finished_steps_is_told(tmp_path, text):
    (tmp_path / "done.json").write_text(text)
    with pytest.raises(WsssError, match="finished steps"):
        run_steps([], tmp_path, 1, lambda line: None)
