"""The processes of one run under torchrun, and how a run is interrupted cleanly."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wsssfast.errors import WsssError
from wsssfast.torchrun import torchrun_slot, torchrun_worker


@dataclass(frozen=True)
class Workers:
    """This process among those of the run.

    Attributes:
        rank: of this one, from 0.
        world: how many there are.
        device: where its network runs.
    """

    rank: int = 0
    world: int = 1
    device: str = "cpu"

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def first_does(self, action: Callable[[], object]) -> None:
        """Let the first worker do something while the others wait; all fail if it does.

        Raises:
            WsssError: the first worker's.
        """
        problem = None
        if self.first:
            try:
                action()
            except WsssError as error:
                problem = (error.message, error.remedy, error.code)
        problem = self.gather(problem)[0]
        if problem:
            raise WsssError(*problem)

    def most(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag: whether any worker raised it."""
        if self.world == 1:
            return flags
        found = torch.tensor(flags, dtype=torch.int32, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return tuple(map(bool, found.tolist()))

    def mean(self, values: Tensor) -> Tensor:
        """Mean of a tensor over the workers."""
        if self.world > 1:
            dist.all_reduce(values)
        return values / self.world

    def share_buffers(self, model: nn.Module) -> None:
        """Give every worker the first one's statistics of batch normalisation, which it saves."""
        if self.world > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def gather(self, value: Any) -> list[Any]:
        """Every worker's value, in the order of ranks, on every worker."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values


def own_device(device: str) -> str:
    """`cuda` as the GPU of this worker of torchrun's, which becomes the current one.

    Raises:
        WsssError: fewer GPUs on this machine than workers.
    """
    if device != "cuda" or torchrun_worker()[1] == 1:
        return device
    slot = torchrun_slot()
    if slot >= torch.cuda.device_count():
        raise WsssError(
            f"Expected a GPU for each worker, found {torch.cuda.device_count()}.",
            "Start as many workers a machine as it has GPUs, or use --device cpu.",
        )
    torch.cuda.set_device(slot)
    return f"cuda:{slot}"


@contextmanager
def join_workers(device: str) -> Iterator[Workers]:
    """Join the run that torchrun started (nccl on GPUs, else gloo), or be a run of one.

    Args:
        device: "cpu" or "cuda".
    """
    rank, world = torchrun_worker()
    if world == 1:
        yield Workers(device=device)
        return
    device = own_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield Workers(rank, world, device)
    finally:
        dist.destroy_process_group()


class Interruption:
    """Set once SIGINT or SIGTERM arrived; a second SIGINT stops at once."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Signal handler."""
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def interruption() -> Iterator[Interruption]:
    """Catch SIGINT and SIGTERM as a wish to stop at the next good moment."""
    asked = Interruption()
    if threading.current_thread() is not threading.main_thread():  # Python lets no other do it
        yield asked
        return
    before = {s: signal.signal(s, asked) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_signals_to_parent(loader_worker: int) -> None:
    """Loader processes outlive Ctrl-C and SIGTERM to their group: the parent ends them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
