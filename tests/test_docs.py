"""The pages: they build, every command is in them, and what they show can be run."""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
from support import folder_dataset, random_image, tiny_model

from wsssfast.cam_options import CamOptions
from wsssfast.cli.main import COMMANDS, main
from wsssfast.data import open_dataset
from wsssfast.demo import CLASSIFIER
from wsssfast.export import export_cams
from wsssfast.models.checkpoint import save_model

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page, kind):
    """Code blocks of a kind; `kind` is empty for those that name none."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def documented_commands():
    """(page, words after `wsssfast`) of every command line, in blocks and in sentences."""
    found = []
    for page in PAGES:
        text = "".join(text for kind in ("sh", "") for text in blocks(page, kind))
        lines = text.replace("\\\n", " ").splitlines()
        lines += [
            " ".join(code.split()) for code in re.findall(r"`(wsssfast [^`]+)`", page.read_text())
        ]
        for line in lines:
            if re.match(r"\s*(wsssfast|torchrun)\s", line):
                words = shlex.split(line.replace("…", ""), comments=True)
                found.append((page.name, words[words.index("wsssfast") + 1 :]))
    return found


def test_the_pages_build_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", tmp_path / "out"]
    command += ["-D", "nb_execution_mode=off"]  # the next test runs it, in a short form
    done = subprocess.run(
        [*map(str, command), "-d", str(tmp_path / "cache")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "out" / "commands.html").read_text()
    assert "--related-by" in page and "--holdout" in page


def test_the_notebook_runs(monkeypatch):
    """Every cell, with a training of one epoch; `make docs` runs it in full."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setattr("wsssfast.demo.CLASSIFIER", replace(CLASSIFIER, epochs=1))
    cells = json.loads((ROOT / "docs" / "notebook.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) == 6 and not any(cell.get("outputs") for cell in cells)
    names = {}
    for n, text in enumerate(code):
        exec(compile(text, f"cell {n}", "exec"), names)
    assert set(names["scores"]) == set(names["CAMS"].stages)
    assert names["c2p"].shape == (1, 1, 196)


def test_every_command_and_page_is_listed():
    listed = (ROOT / "docs" / "commands.md").read_text()
    for name, (module, attribute, _) in COMMANDS.items():
        assert (
            f".. click:: wsssfast.cli.{module}:{attribute}\n   :prog: wsssfast {name}\n" in listed
        )
        assert f"wsssfast {name}" in (ROOT / "README.md").read_text() or name in ("verify",)
    index = (ROOT / "docs" / "index.md").read_text()
    for page in PAGES[1:]:
        assert page.stem == "index" or f"\n{page.stem}\n" in index
    assert "\nnotebook\n" in index


def test_commands_that_are_shown_have_these_options():
    shown = documented_commands()
    assert len(shown) > 40
    for page, words in shown:
        command, context = main, click.Context(main)
        while isinstance(command, click.Group) and words:
            name, *words = words
            command = command.get_command(context, name)
            assert command, f"{page}: {name}"
            context = click.Context(command, parent=context, info_name=name)
        try:
            command.make_parser(context).parse_args(words)
        except click.BadOptionUsage:  # a sentence may name an option without its value
            pass
        except click.UsageError as error:
            raise AssertionError(f"{page}: wsssfast {context.info_name}: {error}") from error


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A folder with what the examples name; returns their namespace."""
    monkeypatch.chdir(tmp_path)
    model = tiny_model_of("dog", "person")
    save_model(model, tmp_path / "classifier.safetensors")
    random_image(40, 32).save("dog.jpg")
    root = folder_dataset(tmp_path / "data")
    save_model(tiny_model(), tmp_path / "three.safetensors")
    export_cams(tiny_model(), open_dataset("folder", root), Path("cams"), CamOptions())
    energies = np.random.RandomState(0).rand(2, 32, 40).astype(np.float32)
    image = np.asarray(random_image(40, 32))
    import torch

    return {"image": torch.from_numpy(image.copy()), "energies": torch.from_numpy(energies)}


def tiny_model_of(*names):
    from support import tiny_config

    from wsssfast.models.classifier import ClassTokenViT

    return ClassTokenViT(tiny_config(names)).eval()


@pytest.mark.parametrize("page", ["README.md", "docs/api.md", "docs/crf.md"])
def test_examples_in_python_run(page, reader):
    found = blocks(ROOT / page, "python")
    assert found
    for block in found:
        exec(compile(block, page, "exec"), dict(reader))
