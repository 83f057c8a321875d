"""How much memory there is, how many images of a size fit a forward pass, and running out of it."""

import ctypes
import os
from pathlib import Path

import torch

from wsssfast.cam_options import CamOptions
from wsssfast.errors import BadFile
from wsssfast.loader import TOO_LARGE
from wsssfast.models.classifier import ClassTokenViT

_PATCHES_CPU = 2304  # more in a forward pass gain nothing on a CPU (docs/export.md)
_MOST_CUDA = 64  # images a forward pass; more gain nothing
CRF_BYTES = 400  # a pixel, that a CRF takes beside its scores (docs/crf.md)
NETWORK_BYTES = 4000  # a pixel, that ResNet38 takes; 3,900 measured at 321 x 321, ViTs take 280
_CGROUP = Path("/sys/fs/cgroup")
_RAN_OUT = (  # of PyTorch's, CUDA's, cuBLAS's, Triton's and C++'s errors
    "can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED", "bad_alloc",
)  # fmt: skip
_LIMITS = ("memory.max", "memory.limit_in_bytes")  # of cgroups of version 2 and 1


def usable_memory(device: torch.device) -> int:
    """Bytes that a process may have: a GPU's memory, else the machine's or its cgroup's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([physical, *_cgroup_limits()])


def _cgroup_limits() -> list[int]:
    """Limits of the process's own cgroup and all above it, as batch schedulers set them."""
    found = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = _CGROUP / "memory" if controllers else _CGROUP
        folder = root / place.lstrip("/")
        for level in (folder, *folder.parents):
            if root in (level, *level.parents):
                found += [_number(level / name) for name in _LIMITS]
    return [limit for limit in found if limit]


def _number(path: Path) -> int:
    """The number in a file; 0 where there is none (no file, or `max`)."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def patches_of(model: ClassTokenViT, size: tuple[int, int], scale: float) -> int:
    """N of an image of (width, height) at a scale."""
    width, height = (max(1, round(side * scale) // model.patch_size) for side in size)
    return width * height


def most_images(model: ClassTokenViT, size: tuple[int, int], options: CamOptions) -> int:
    """How many images of (width, height) fit one forward pass in half of the memory; may be 0.

    The patch-to-patch attention, its ranking and its propagation take the most: about four
    float32 arrays of N x N for each image and flip; on a GPU, also the kept queries and keys.
    """
    patches = patches_of(model, size, max(options.scales))
    floats = 4 * patches**2
    device = next(model.parameters()).device
    if device.type == "cuda":
        floats += 2 * len(model.blocks) * patches * model.embed_dim
    needed = 4 * floats * (2 if options.flip else 1)
    return usable_memory(device) // 2 // needed


def require_memory(model: ClassTokenViT, size: tuple[int, int], options: CamOptions) -> None:
    """Refuse an image of (width, height) that cannot fit into memory before it is tried.

    Raises:
        BadFile: it is too large.
    """
    if most_images(model, size, options) < 1:
        raise BadFile(f"{size[0]}x{size[1]} {TOO_LARGE}")


def good_batch(model: ClassTokenViT, size: tuple[int, int], options: CamOptions) -> int:
    """How many images of (width, height) a forward pass should have to be fast, at least 1.

    The rule behind `--batch-size auto`: a function of size, model and device alone, so that a run
    that is continued makes the batches of an undisturbed one.
    """
    if next(model.parameters()).device.type == "cuda":
        return _MOST_CUDA
    patches = patches_of(model, size, max(options.scales)) * (2 if options.flip else 1)
    return max(1, _PATCHES_CPU // patches)


def give_back() -> None:
    """Return freed memory to the system; over many sizes of images, glibc would keep more of it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def ran_out(error: Exception) -> bool:
    """Whether an error says that memory could not be had, on a GPU or on the machine."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _RAN_OUT)
