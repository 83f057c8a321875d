"""Compile every shipped launch of every kernel ahead of time, and say what each takes of a chip.

No GPU is needed. One JSON line a launch, or with --markdown the table of docs/kernels.md:

    python tests/helpers/compiled.py --arch 80,90 [--first] [--markdown]

`--first` takes one launch a kernel and architecture. Exits with 1 where registers spill or shared
memory exceeds the chip's.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from wsssfast.kernels import (
    attention_mean,
    crf_triton,
    flash,
    given_mean,
    launch,
    modulation,
    propagation,
    selection,
    walk_triton,
)
from wsssfast.kernels.affinity import OFFSETS
from wsssfast.kernels.backend import MOST_PATCHES

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
SHARED_LIMIT = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB a block
WIDTHS = (32, 64, 80, 128)
_SIZES = (
    "ROWS",
    "COLUMNS",
    "CLASSES",
    "BLOCK",
    "PIECES",
    "ENTRIES",
    "VERTICES",
    "PIXELS",
    "OTHERS",
    "CELLS",
)
BITS = {"fp16": 16, "bf16": 16, "fp32": 32}
_SCALARS = {"scale": "fp32", "weight": "fp32", "whole": "i64"}  # all others: i32
_POINTERS = {
    "select": {"similarity_ptr": "fp32", "threshold_ptr": "i32", "cut_ptr": "i32"},
    "modulate": {"similarity_ptr": "fp32", "threshold_ptr": "i32", "cut_ptr": "i32",
                 "c2p_ptr": "fp32", "cam_ptr": "fp32", "out_ptr": "fp32"},
    "propagate": {"cam_ptr": "fp32", "p2p_ptr": "fp32", "out_ptr": "fp32"},
    "mean": {"kept_ptr": "", "lse_ptr": "fp32", "c2p_ptr": "fp32", "p2p_ptr": "fp32"},
    "given": {"attention_ptr": "", "c2p_ptr": "fp32", "p2p_ptr": "fp32"},
    "flash": {"query_ptr": "", "key_ptr": "", "value_ptr": "", "output_ptr": "",
              "lse_ptr": "fp32"},
    "crf_splat": {"map_ptr": "fp32", "pixel_ptr": "i32", "weight_ptr": "fp32", "begin_ptr": "i32",
                  "out_ptr": "fp32"},
    "crf_join": {"piece_ptr": "fp32", "begin_ptr": "i32", "out_ptr": "fp32"},
    "crf_blur": {"vertex_ptr": "fp32", "neighbour_ptr": "i32", "out_ptr": "fp32"},
    "crf_slice": {"start_ptr": "fp32", "first_ptr": "fp32", "first_vertex_ptr": "i32",
                  "first_weight_ptr": "fp32", "second_ptr": "fp32", "second_vertex_ptr": "i32",
                  "second_weight_ptr": "fp32", "out_ptr": "fp32"},
    "walk": {"weight_ptr": "fp64", "share_ptr": "fp64", "map_ptr": "fp64",
             "other_ptr": "fp64", "walked_ptr": "fp64", "factor_ptr": "fp64",
             "offset_ptr": "i32", "about_ptr": "i64"},
}  # fmt: skip


def launches(arch: int) -> Iterator[tuple[str, object, str, dict, dict]]:
    """Kernel, function, precision, constants and options of every launch on an architecture."""
    for block in (256, 1024, 4096, MOST_PATCHES):
        constants = {"INCLUDE_SELF": block == 256, "BLOCK": block}
        yield (
            "select",
            selection.select_kernel,
            "fp32",
            constants,
            {"num_warps": selection.warps(block)},
        )
    for dtype in BITS:
        constants = {"FIRST": dtype == "fp16", "BLOCK": 1024}
        yield "given", given_mean.given_kernel, dtype, constants, {"num_warps": 4}
    for kernel, function in (
        ("mean", attention_mean.mean_kernel),
        ("flash", flash.flash_kernel),
        ("modulate", modulation.modulate_kernel),
        ("propagate", propagation.propagate_kernel),
    ):
        wide = kernel in ("mean", "flash")
        for dtype in BITS if wide else ("fp32",):
            for width in WIDTHS if wide else (0,):
                for row in rows(kernel, arch, BITS[dtype], width):
                    constants = {k: v for k, v in row.items() if k.isupper()}
                    options = {k: row[k] for k in ("num_warps", "num_stages")}
                    if wide:
                        constants |= {"WIDTH": width, "PRECISION": "tf32x3"}
                        if kernel == "mean":
                            part = attention_mean.channels(width, BITS[dtype] // 8)
                            constants["CHANNELS"] = part
                        else:
                            constants["WIDTH_BLOCK"] = triton.next_power_of_2(width)
                        yield kernel, function, dtype, constants, options
                        continue
                    flags: tuple[dict, ...] = (
                        {"from_stride": 1, "BOTH": False}, {"to_stride": 1, "BOTH": False},
                        {"from_stride": 1, "BOTH": True},
                    )  # fmt: skip
                    if kernel == "modulate":
                        flags = tuple({"INCLUDE_SELF": x, "COUPLE": x} for x in (True, False))
                    for flag in flags:
                        for classes in (constants["CLASSES"], 16):  # `launch.tiles` for few
                            few = constants | flag | {"CLASSES": classes}
                            yield kernel, function, dtype, few, options


def crf_launches() -> Iterator[tuple[str, object, str, dict, dict]]:
    """The same of the dense CRF's kernels, alike on all architectures, for 2 to 129 classes."""
    for name, (shipped, _) in crf_triton.LAUNCH.items():
        kernel, function = f"crf_{name}", getattr(crf_triton, f"crf_{name}_kernel")
        constants, options = dict(shipped), crf_triton.OPTIONS
        for others in (1, 2, 32, 128) if name != "splat" else (1, 2):
            changed = {}
            if "COLUMNS" in constants:
                changed = {"COLUMNS": min(constants["COLUMNS"], others)}
            elif name == "slice":
                few = crf_triton.pixels_of(constants["PIXELS"], others)
                changed = {"PIXELS": few, "OTHERS": others, "FIRST": 3, "SECOND": 6}
                changed["END"] = others == 2
            if others == 1:  # Triton takes arguments that are 1 as constants
                ones = ("others", "settings") if name == "slice" else ("columns",)
                changed |= dict.fromkeys(ones, 1)
            if changed.get("COLUMNS", others) == others or others == 32:
                yield kernel, function, "fp32", constants | changed, options


def walk_launches() -> Iterator[tuple[str, object, str, dict, dict]]:
    """The same of the random walk's one kernel."""
    constants = {"OFFSETS": len(OFFSETS), **walk_triton.LAUNCH[0]}
    yield "walk", walk_triton.walk_kernel, "fp64", constants, walk_triton.OPTIONS


def rows(kernel: str, arch: int, bits: int, width: int) -> list[launch.Row]:
    """The rows that some size takes."""
    found = []
    for patches in (1, 256, 257, 4096):
        row = next(
            row for row in launch.shipped()[kernel] if launch.fits(row, arch, bits, patches, width)
        )
        if row not in found:
            found.append(row)
    return found


def compile_one(kernel, function, dtype, constants, options, arch: int) -> dict:
    """Registers, stack and shared memory of one launch."""
    names = function.arg_names
    pointers = {k: "*" + (v or dtype) for k, v in _POINTERS[kernel].items()}
    signature, divisible = {}, {}
    for place, name in enumerate(names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        signature[name] = pointers.get(name, _SCALARS.get(name, "i32"))
        if name in pointers or name.endswith("_stride"):
            divisible[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(
        function, signature, {(names.index(k),): v for k, v in constants.items()}, divisible
    )
    options = {"enable_fp_fusion": True, **options}
    built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    dump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        told = subprocess.run(
            [dump, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    used = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", told)}
    return {
        "kernel": kernel,
        "arch": arch,
        "dtype": dtype,
        "constants": constants,
        **options,
        "registers": used["REG"],
        "spilled": used["STACK"] + used["LOCAL"],
        "shared": built.metadata.shared,
        "fits": used["STACK"] + used["LOCAL"] == 0
        and built.metadata.shared <= SHARED_LIMIT[arch] * 1024,
    }


def markdown(found: list[dict]) -> str:
    """A row a launch, a column an architecture: registers a thread, KiB of shared memory."""
    arches = sorted({launch["arch"] for launch in found})
    table: dict[tuple[str, ...], dict[int, str]] = {}
    for one in found:
        of = one["constants"]
        tile = " x ".join(str(of[k]) for k in _SIZES if k in of)
        if "WIDTH" in of:
            case = f"width {of['WIDTH']}"
        else:
            flags = (k.lower().replace("_", " ") for k, v in of.items() if v and k not in _SIZES)
            case = ", ".join(flags)
        warps = f"{one['num_warps']} / {one.get('num_stages', '-')}"
        cells = table.setdefault((one["kernel"], one["dtype"], case, tile, warps), {})
        cells[one["arch"]] = f"{one['registers']}, {one['shared'] / 1024:.0f}"
    merged: dict[tuple[str, ...], list[str]] = {}  # precisions that take the same
    for (kernel, dtype, *others), cells in sorted(table.items(), key=lambda item: item[0][0]):
        row = (kernel, *others, *(cells.get(arch, "") for arch in arches))
        merged.setdefault(row, []).append(dtype)
    header = ["kernel", "input", "case", "tile", "warps / stages", *(f"sm_{a}" for a in arches)]
    lines = [header, ["---"] * len(header)]
    lines += [[row[0], ", ".join(dtypes), *row[1:]] for row, dtypes in merged.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", default=",".join(map(str, ARCHITECTURES)))
    parser.add_argument("--first", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--kernel", default="")
    chosen = parser.parse_args()
    found = []
    for arch in map(int, chosen.arch.split(",")):
        seen = set()
        for kernel, function, dtype, constants, options in (
            *launches(arch),
            *crf_launches(),
            *walk_launches(),
        ):
            if (chosen.first and kernel in seen) or chosen.kernel not in ("", kernel):
                continue
            seen.add(kernel)
            found.append(compile_one(kernel, function, dtype, constants, options, arch))
            if not chosen.markdown:
                print(json.dumps(found[-1]), flush=True)
    if chosen.markdown:
        print(markdown(found))
    return 0 if all(launch["fits"] for launch in found) else 1


if __name__ == "__main__":
    sys.exit(main())
