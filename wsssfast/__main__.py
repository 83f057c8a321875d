"""`python -m wsssfast` is the command line."""

from wsssfast.cli.main import run

run()
