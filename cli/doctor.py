"""`wsssfast doctor`."""

import shutil
from importlib.metadata import PackageNotFoundError, version

import click

from wsssfast.cli.options import json_option, table, write_json

_PACKAGES = ("wsssfast", "torch", "torchvision", "timm", "triton", "numpy", "h5py", "pillow")


@click.command()
@json_option
def doctor(json_path: str | None) -> None:
    """Say what this machine offers, and what the commands will use.

    \b
    Example:
      wsssfast doctor
    """
    import os
    import platform

    import torch

    found = {"python": platform.python_version(), "cpu cores": str(os.cpu_count())}
    for package in _PACKAGES:
        found[package] = _version(package)
    found["pydensecrf"] = _version("pydensecrf2")
    found["C compiler"] = shutil.which("cc") or shutil.which("gcc") or "none"
    gpu = torch.cuda.is_available()
    found["GPU"] = torch.cuda.get_device_name() if gpu else "none"
    found["torch threads"] = str(torch.get_num_threads())
    found["device used"] = "cuda" if gpu else "cpu"
    from wsssfast.kernels import choose_crf
    from wsssfast.kernels.backend import for_device

    chosen = for_device("cuda" if gpu else "cpu")
    told = {"triton": "triton", "eager": "eager (batched PyTorch, no compiler needed)"}
    found["kernels used"] = told[chosen]
    crf = {
        "triton": "triton (images of any sizes in one launch)",
        "torch": "torch (no compiler needed; measured faster than pydensecrf)",
    }
    found["crf used"] = crf[choose_crf("auto", found["device used"])]
    write_json(found, json_path)
    if json_path != "-":
        table("wsssfast doctor", ["what", "found"], [[k, v] for k, v in found.items()])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
