"""Mask records of many images, made here or in worker processes; and whole shards of them."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Event, Thread
from typing import Any, Protocol, TypeVar

import torch

from wsssfast.errors import WORKER_FAILED, BadFile, WsssError
from wsssfast.kernels import CrfBackend, choose_crf
from wsssfast.memory import ran_out
from wsssfast.shards.label_shards import LabelRecord, write_label_shard
from wsssfast.shards.run import ShardRun
from wsssfast.torchrun import local_workers
from wsssfast.versions import versions


class HasId(Protocol):
    """Something of one image."""

    @property
    def id(self) -> str: ...  # noqa: D102


T = TypeVar("T", bound=HasId)
Made = LabelRecord | str  # or the reason why there is none
MakeAll = Callable[[Iterable[T]], Iterator[tuple[str, Made]]]


class Maker(Protocol[T]):
    """Makes records; can be sent to another process."""

    @property
    def workers_option(self) -> str:
        """What sets the number of processes on the command line."""

    def __call__(self, batch: Sequence[T]) -> list[Made]:
        """A record of each, or the reason why there is none."""

    def batches(self, things: Iterable[T]) -> Iterator[tuple[T, ...]]:
        """What is computed together."""


def made_of(
    together: Callable[[Sequence[T]], list[Made]],
    batch: Sequence[T],
    size_of: Callable[[T], tuple[int, int]],
) -> list[Made]:
    """A record of each, or the reason why there is none; one after the other where not all.

    Args:
        together: makes all, or raises what is wrong with any.
        batch: of what.
        size_of: (height, width) of one for which there was no memory.
    """
    try:
        return together(batch)
    except BadFile as error:
        if len(batch) == 1:
            return [str(error)]
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        if len(batch) == 1:
            height, width = size_of(batch[0])
            return [f"not enough memory for {width}x{height} pixels"]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return [made for one in batch for made in made_of(together, [one], size_of)]


@contextmanager
def makers(maker: Maker[T], workers: int, stop: Event) -> Iterator[MakeAll[T]]:
    """What turns things into records, in their order; in so many processes where more than one.

    Args:
        maker: does it.
        workers: how many processes.
        stop: ends it early when it is set, from another thread.

    Raises:
        WsssError: a process died; exit code 5.
    """
    if workers == 1:

        def here(things: Iterable[T]) -> Iterator[tuple[str, Made]]:
            for batch in maker.batches(things):
                _go_on(stop)
                yield from zip((one.id for one in batch), maker(batch), strict=True)

        yield here
        return
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _begin_worker, (maker,)
    )
    try:
        yield lambda things: _spread(pool, things, 3 * workers, stop)
    except BrokenProcessPool as error:
        raise WsssError(
            "Expected the processes that make masks to live, found one killed.",
            f"It may have been for memory: give fewer {maker.workers_option}. What is written "
            "stays; run the same command again. (A script of your own needs `if __name__ == "
            "'__main__':`.)",
            WORKER_FAILED,
        ) from error
    finally:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()  # what they hold is nowhere else needed
        pool.shutdown(wait=False, cancel_futures=True)


def _spread(
    pool: ProcessPoolExecutor, things: Iterable[Any], ahead: int, stop: Event
) -> Iterator[tuple[str, Made]]:
    pending: deque[tuple[str, Future[Made]]] = deque()
    for one in things:
        if len(pending) == ahead:
            image_id, made = pending.popleft()
            yield image_id, _result(made, stop)
        pending.append((one.id, _submit(pool, one)))
    for image_id, made in pending:
        yield image_id, _result(made, stop)


def _result(made: Future[Made], stop: Event) -> Made:
    while not made.done():
        _go_on(stop)
        wait([made], timeout=0.5)
    return made.result()


def _go_on(stop: Event) -> None:
    if stop.is_set():
        raise WsssError("The run ended before its shard.")


def _submit(pool: ProcessPoolExecutor, thing: Any) -> Future[Made]:
    """Ctrl-C is the parent's alone: a process that this starts never hears of it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        return pool.submit(_make, thing)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_own: Maker[Any]  # of a worker process


def _begin_worker(maker: Maker[Any]) -> None:
    """One core each, and none outlives the parent."""
    global _own
    _own = maker
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None
    Thread(target=_end_with, args=(parent,), daemon=True).start()
    Thread(target=_end_by, args=(parent.pid,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _end_by(parent: int | None) -> None:
    """The pool's SIGTERM, by which it ends the others where one was killed: it waits for them.

    Anyone else's is meant for the whole group, and is the parent's to answer.
    """
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(1)


def _make(thing: Any) -> Made:
    return _own([thing])[0]


def crf_at(backend: CrfBackend, device: str) -> str:
    """What computes the CRF on a device.

    Raises:
        WsssError: the backend cannot run there.
    """
    try:
        return choose_crf(backend, device)
    except ValueError as error:
        raise WsssError(
            f"The CRF cannot run: {error}.", "`wsssfast doctor` says what can."
        ) from error


def sharing(device: str, workers: int) -> int:
    """How many makers a machine's memory is for; a GPU has one."""
    return workers * local_workers() if device == "cpu" else 1


def records_of(
    make: MakeAll[T], things: Iterable[T], run: ShardRun | None = None
) -> tuple[list[LabelRecord], dict[str, str]]:
    """Records sorted by id, and why others have none; a run is told of each."""
    records: list[LabelRecord] = []
    failed: dict[str, str] = {}
    for image_id, made in make(things):
        if isinstance(made, str):
            failed[image_id] = made
        else:
            records.append(made)
        if run:
            run.pace.advance(1, isinstance(made, str))
    return sorted(records, key=lambda record: record.id), failed


def write_records(
    run: ShardRun, out: Path, index: int, count: int, records: list[LabelRecord],
    failed: dict[str, str], who: dict[str, object], config: dict[str, object],
) -> None:  # fmt: skip
    """Write one shard of a run."""
    run.write(index, lambda: write_label_shard(
        out, index, count, records, failed=failed, identity=who, config=config,
        versions=versions("numpy", "h5py"),
    ))  # fmt: skip
