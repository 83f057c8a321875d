"""Fixtures of the command line's tests."""

import sys

import pytest

from wsssfast.cli.main import run


@pytest.fixture
def wsssfast(monkeypatch, capsys):
    """Run the command in this process: (exit code, stdout, stderr)."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["wsssfast", *map(str, words)])
        code = 0
        try:
            run()
        except SystemExit as stop:
            code = stop.code or 0
        found = capsys.readouterr()
        return code, found.out, found.err

    return call
