"""Run the scripts of docs/convert.md as their readers would: by plain Python, in a process."""

import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs" / "convert.md"
NPY, IRN, COCO = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)


def run_script(script, *words):
    """What a script prints; it must not know this package."""
    assert "wsssfast" not in script
    command = [sys.executable, "-c", script, *map(str, words)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return found.stdout
