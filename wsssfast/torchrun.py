"""What torchrun's environment says of this process."""

import os


def torchrun_worker() -> tuple[int, int]:
    """(rank, number of workers); (0, 1) outside of torchrun."""
    if "RANK" not in os.environ:  # some schedulers set WORLD_SIZE alone
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ.get("WORLD_SIZE", "1"))


def torchrun_slot() -> int:
    """Rank among the workers of this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_workers() -> int:
    """How many workers share this machine."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def own_cores() -> int:
    """Cores for this worker's own threads: its share of those that it may use, 1 to 16."""
    return max(1, min(16, len(os.sched_getaffinity(0)) // local_workers()))
