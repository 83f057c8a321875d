"""What goes wrong: each function is called in a command's process and lays the fault in its way.

Faults are real wherever a process can have them: signals, a limit on the size of files, rights
given up, a read that the kernel fails, memory that the allocator refuses.
"""

import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path

import h5py
import torch

# the file that is about to be renamed to its name: by then the first shard or epoch is complete
AT = {"train": 5, "export-cams": 3, "train-affinity": 9, "export-labels": 3, "train-seg": 5}
_ABOVE_ALL = 1 << 55  # bytes
_DAY = 86_400


def at_a_file(act, job):
    """Call `act(job)` when a file of the results is written and not yet renamed."""
    replace, count = Path.replace, [0]

    def replacing(path, target):
        count[0] += 1
        if count[0] == AT[job.command]:
            act(job)
        return replace(path, target)

    Path.replace = replacing


def killed(job):
    os.kill(os.getpid(), signal.SIGKILL)


def terminated(job):
    os.kill(os.getpid(), signal.SIGTERM)


def stopped(job):
    os.kill(os.getpid(), signal.SIGSTOP)


def disk_full(job):
    """No file may grow from here on: each write fails (EFBIG where a disk says ENOSPC)."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def permission_lost(job):
    """Nothing may be read or written from here on."""
    if os.geteuid() == 0:
        os.seteuid(65534)
    else:
        job.root.chmod(0)


def helpers_killed(job):
    for process in multiprocessing.active_children():
        os.kill(process.pid, signal.SIGKILL)
    time.sleep(0.5)


def clock_jumps(job):
    """Each look at the clock finds it a day earlier, or ten years later, than the one before."""
    true, count = time.time, [0]

    def jumping():
        count[0] += 1
        return true() + (-_DAY if count[0] % 2 else 3650 * _DAY)

    time.time = jumping


def out_of_memory(job):
    """The allocator refuses what the second layer of the network asks for, once."""
    forward, count = torch.nn.Linear.forward, [0]

    def refused(layer, x):
        count[0] += 1
        if count[0] == 40:
            torch.empty(_ABOVE_ALL, dtype=torch.uint8)
        return forward(layer, x)

    torch.nn.Linear.forward = refused


def unreadable(path):
    """Put a file there whose first byte the kernel fails to read (EIO)."""
    path.unlink()
    path.symlink_to("/proc/self/mem")


def flip_a_byte(path):
    """Change one bit of what a file is there for: the largest data of a shard, or a weight."""
    place = path.stat().st_size * 2 // 3
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            found = [file[name] for name in file if isinstance(file[name], h5py.Dataset)]
            largest = max(found, key=lambda data: data.id.get_storage_size())
            chunked = largest.chunks is not None
            place = largest.id.get_chunk_info(0).byte_offset if chunked else largest.id.get_offset()
    content = bytearray(path.read_bytes())
    content[place + 4] ^= 4
    path.write_bytes(content)
