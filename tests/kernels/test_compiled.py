"""Every kernel compiles for real chips without spilling registers, no GPU needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

SCRIPT = Path(__file__).resolve().parents[1] / "helpers" / "compiled.py"
KERNELS = {"mean", "given", "flash", "select", "modulate", "propagate", "walk"} | {
    f"crf_{step}" for step in ("splat", "join", "blur", "slice")
}


def compiled(*arguments):
    """What the script says of each launch; it runs apart, because here Triton interprets."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, env=environment
    )
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert lines, run.stderr
    return lines


def check(lines, architectures):
    assert {(line["kernel"], line["arch"]) for line in lines} == {
        (kernel, arch) for kernel in KERNELS for arch in architectures
    }
    assert [line for line in lines if not line["fits"]] == []


pytestmark = pytest.mark.skipif(
    tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3),
    reason="ahead of time, the script compiles by the interface of Triton 3.3 and later",
)


def test_one_launch_of_every_kernel_for_two_chips():
    check(compiled("--arch", "80,90", "--first"), (80, 90))


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 86, 89, 90, 100, 120])
def test_every_shipped_launch_for_every_chip(arch):
    check(compiled("--arch", str(arch)), (arch,))
