"""Several batches at a time on a CPU, each with cores of its own.

Cores that share one batch wait for each other after every operation, and for Python in between;
with a batch each they do not: 1.27 times the images/s on two cores (docs/export.md).
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

_MOST = 8
Submit = Callable[..., "Future[Any]"]


@contextmanager
def lanes(device: torch.device) -> Iterator[tuple[Submit, int]]:
    """What starts a computation, and how many may be started before the first is waited for.

    On a CPU, PyTorch's threads are shared out among at most 8 lanes; what has not begun when the
    context ends never does. On a GPU a computation is queued by the time that it is started.

    Args:
        device: that computes.
    """
    if device.type != "cpu":
        yield _at_once, 1
        return
    threads = torch.get_num_threads()
    each = -(-threads // _MOST)
    pool = ThreadPoolExecutor(threads // each, "lane", torch.set_num_threads, (each,))
    try:
        yield pool.submit, 2 * (threads // each)
    finally:
        pool.shutdown(cancel_futures=True)


def _at_once(work: Callable[..., Any], *arguments: Any) -> "Future[Any]":
    done: Future[Any] = Future()
    done.set_result(work(*arguments))
    return done
