"""The shape of the project: packaging, imports between the three parts, file length."""

import ast
import re
import subprocess
import tomllib
from importlib import resources
from pathlib import Path

import wsssfast

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(p for part in ("kernels", "wsssfast", "cli") for p in (ROOT / part).rglob("*.py"))


def test_packages_are_those_of_the_tree():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    prefix = {"kernels": "wsssfast.kernels", "cli": "wsssfast.cli", "wsssfast": "wsssfast"}
    files = [p.relative_to(ROOT) for part in prefix for p in (ROOT / part).rglob("*")
             if p.is_file() and p.parent.name != "__pycache__"]  # fmt: skip
    found = {".".join([prefix[p.parts[0]], *p.parts[1:-1]]) for p in files}
    assert found == set(config["packages"])
    assert config["package-dir"] == {name: folder for folder, name in prefix.items()}


def test_only_one_name_is_installed_at_top_level():
    assert resources.files("wsssfast").joinpath("py.typed").is_file()
    for name in wsssfast.__all__:
        assert getattr(wsssfast, name) is not None


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name


def test_imports_go_from_cli_to_library_to_kernels():
    for path in SOURCES:
        part = path.relative_to(ROOT).parts[0]
        for name in imports(path):
            if part == "kernels" and name.startswith("wsssfast."):
                assert name.startswith("wsssfast.kernels"), path
            if part == "wsssfast" and path.name != "__main__.py":
                assert not name.startswith("wsssfast.cli"), path


def layers():
    """Unit -> number of its line in the diagram of docs/architecture.md, from below."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    lines = text.split(":name: layers\n\n")[1].split("```")[0].strip().splitlines()
    return {name: -n for n, line in enumerate(lines) for name in line.split(", ")}


def unit(name, known):
    """The part of the diagram that a module belongs to; None for other packages."""
    parts = name.split(".")
    if parts[0] != "wsssfast":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in known else "__init__"


def test_imports_go_down_the_diagram():
    known = layers()
    files = {p.stem if p.parent == ROOT / "wsssfast" else p.relative_to(ROOT / "wsssfast").parts[0]
             for p in SOURCES if p.is_relative_to(ROOT / "wsssfast")}  # fmt: skip
    assert set(known) == files | {"cli", "kernels"}
    for path in SOURCES:
        part, *rest = path.relative_to(ROOT).with_suffix("").parts
        own = rest[0] if part == "wsssfast" else part
        for name in imports(path):
            other = unit(name, known) if name and "." in name else None
            if other and other != own:
                assert known[other] < known[own], f"{path} imports {name}"


def test_files_stay_short_and_finished():
    for path in SOURCES + sorted((ROOT / "tests").rglob("*.py")):
        assert len(path.read_text().splitlines()) <= 400, path


def test_nothing_shared_is_tracked():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    binary = (".jpg", ".jpeg", ".png", ".pth", ".pt", ".safetensors", ".h5", ".npy", ".npz")
    assert [name for name in tracked if name.endswith(binary)] == []


def test_the_gpu_script_names_what_is_there_and_ends_in_time():
    text = (ROOT / "benchmarks" / "gpu.sh").read_text()
    named = set(re.findall(r"(?<![\w/])(?:tests|benchmarks)/[\w./]+\.(?:py|sh)|tests/\w+", text))
    assert len(named) >= 5
    assert not [name for name in named if not (ROOT / name).exists()]
    assert 400 < sum(map(int, re.findall(r"^ *part [\w-]+ (\d+) ", text, re.M))) < 600
