"""Peak memory of one call above what was there before it: its own tensors, not its inputs.

On CUDA as PyTorch's allocator counts it. On CPU in a fresh process, from the kernel's high-water
mark of resident memory, since what a process has freed before would hide what a call needs.
"""

import multiprocessing
import re
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch

from wsssfast.bench.cases import Call, build
from wsssfast.bench.options import Spec
from wsssfast.memory import give_back

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def cuda_peak(call: Call) -> int:
    """Bytes that a call held at once beyond those that were allocated before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call(0)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del result
    return peak


class FreshProcesses:
    """Measures contenders on CPU, each in a process of its own that has computed nothing yet.

    They are forked from a server that has imported PyTorch and started no threads.
    """

    def __init__(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["wsssfast.bench.forward", "wsssfast.bench.operations"])
        self._context = context

    def peak(self, spec: Spec, name: str) -> int | None:
        """Bytes that one call of a contender adds to the process; None where it died of it."""
        with ProcessPoolExecutor(1, mp_context=self._context) as pool:
            try:
                return pool.submit(resident_peak, spec, name, torch.get_num_threads()).result()
            except (BrokenProcessPool, RuntimeError):
                return None


def resident_peak(spec: Spec, name: str, threads: int) -> int:
    """`peak_of` a contender, with so many threads."""
    torch.set_num_threads(threads)
    case = build(spec, sets=1)
    (call,) = (contender.call for contender in case.contenders if contender.name == name)
    return peak_of(lambda: call(0))


def peak_of(call: Callable[[], object]) -> int:
    """Bytes that the second of two calls adds to this process, which has called nothing before.

    The first leaves behind what is set up once: threads, packed weights, the allocator's arenas, of
    which the unused part is given back in between.
    """
    call()
    give_back()
    exact = _reset_peak()
    before = _status("VmRSS")
    call()
    if exact:
        return max(0, _status("VmHWM") - before)
    # the mark of the whole process: not too low, since no call before this one needed more
    return max(0, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def available() -> int:
    """Bytes that a process could still take on this machine without swapping."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
    assert found is not None
    return 1024 * int(found[1])


def _reset_peak() -> bool:
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _status(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", _STATUS.read_text(), re.M)
    assert found is not None
    return 1024 * int(found[1])
