"""Times of calls that take turns: medians with p20 and p80, on CPU and on CUDA.

On CUDA by events, with the L2 cache flushed before each call; on both over several sets of inputs
in rotation, after a warm-up, and every round begins with another contender, so that all see the
same machine.
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from wsssfast.bench.cases import Call, Contender
from wsssfast.memory import ran_out

_WARM_UP = 2  # calls: the first compiles and fills caches, the second is as all others
_LEAST, _MOST = 5, 1000  # rounds


@dataclass(frozen=True)
class Times:
    """Milliseconds of repeated calls."""

    median: float
    p20: float
    p80: float
    runs: int


@dataclass
class Turns:
    """What a comparison found, by contender.

    Attributes:
        times: of those that ran.
        failed: why the others did not: "out of memory", or "failed: " and what was raised.
        graphs: those that were replayed from a CUDA graph.
    """

    times: dict[str, Times] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    graphs: set[str] = field(default_factory=set)


def spread(milliseconds: Sequence[float]) -> Times:
    """Median, p20 and p80 of some measurements."""
    low, middle, high = np.quantile(np.asarray(milliseconds), (0.2, 0.5, 0.8))
    return Times(float(middle), float(low), float(high), len(milliseconds))


def take_turns(contenders: Sequence[Contender], device: str, seconds: float, sets: int) -> Turns:
    """Time contenders against one another.

    Args:
        contenders: with calls that take the number of a set of inputs.
        device: cpu or cuda.
        seconds: to go on for, at least five rounds.
        sets: how many sets of inputs there are.
    """
    turns = Turns()
    calls: dict[str, Call] = {}
    for contender in contenders:
        reason = _attempt(_warm_up, contender.call)
        if reason:
            turns.failed[contender.name] = reason
            continue
        calls[contender.name] = contender.call
        replay = graphed(contender.call, sets) if contender.graph and device == "cuda" else None
        if replay is not None:
            calls[contender.name] = replay
            turns.graphs.add(contender.name)
    measure = _timer(device)
    found: dict[str, list[float]] = {name: [] for name in calls}

    def take(name: str, n: int) -> None:
        found[name].append(measure(calls[name], n))

    end, rounds = time.perf_counter() + seconds, 0
    while calls and rounds < _MOST and (rounds < _LEAST or time.perf_counter() < end):
        names = list(calls)
        first = rounds % len(names)
        for place, name in enumerate((*names[first:], *names[:first])):
            reason = _attempt(take, name, rounds + place)  # no two in a row on the same inputs
            if reason:
                turns.failed[name] = reason
                del calls[name]
        rounds += 1
    turns.times = {name: spread(found[name]) for name in calls}
    return turns


def graphed(call: Call, sets: int) -> Call | None:
    """A call whose kernels are replayed from CUDA graphs, free of the time to launch them.

    None where they cannot be recorded, as with a step that waits for the host.
    """
    graphs, pool = [], torch.cuda.graph_pool_handle()
    torch.cuda.synchronize()
    collecting = gc.isenabled()
    gc.disable()  # a collected Triton kernel would unload its module, which no recording allows
    try:
        for n in range(sets):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                call(n)
            graphs.append(graph)
    except RuntimeError:
        return None
    finally:
        if collecting:
            gc.enable()
    return lambda n: graphs[n % sets].replay()


def reason_of(error: Exception) -> str:
    """One line on why a contender has no time."""
    if ran_out(error):
        return "out of memory"
    return f"failed: {type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _attempt(function: Callable[..., object], *given: object) -> str:
    """Run something; the reason where it raises, empty where it does not.

    Whatever a contender raises, from its compiler or its kernels, is one line of the table: the
    others go on.
    """
    try:
        function(*given)
    except Exception as error:
        reason = reason_of(error)
    else:
        return ""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return reason


def _warm_up(call: Call) -> None:
    for n in range(_WARM_UP):
        call(n)
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _timer(device: str) -> Callable[[Call, int], float]:
    """A function that takes a call and the number of a set of inputs, and gives milliseconds."""
    if device != "cuda":
        return _clock
    size = 2 * getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 1 << 27)
    flush = torch.empty(size, dtype=torch.int8, device=device)
    cuda: Any = torch.cuda  # its events are untyped in some versions
    start, stop = (cuda.Event(enable_timing=True) for _ in range(2))

    def events(call: Call, n: int) -> float:
        flush.zero_()  # runs while the host launches what comes after
        start.record()
        call(n)
        stop.record()
        stop.synchronize()
        elapsed: float = start.elapsed_time(stop)
        return elapsed

    return events


def _clock(call: Call, n: int) -> float:
    start = time.perf_counter()
    call(n)
    return 1e3 * (time.perf_counter() - start)
