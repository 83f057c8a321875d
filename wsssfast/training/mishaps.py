"""What can befall a training run, each told in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wsssfast.errors import WORKER_FAILED, WsssError
from wsssfast.memory import ran_out


@contextmanager
def telling_mishaps(out: Path, device: str) -> Iterator[None]:
    """Turn what the system says of dead loaders, memory and disks into clear errors.

    Args:
        out: folder of the run.
        device: that trains.

    Raises:
        WsssError: a loader process died or memory ran out (code 5), or `out` cannot be written to.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError, MemoryError) as error:
        if _loader_died(error):
            raise WsssError(
                f"A loader process died: {error}.",
                "Often memory ran out: reduce --loader-workers, then run the same command again.",
                WORKER_FAILED,
            ) from error
        if ran_out(error):
            raise WsssError(
                f"Expected memory for a step of training on {device}, found too little.",
                "Run the same command again with a larger --accumulate: it goes on from the state "
                "saved last, and the result stays the same.",
                WORKER_FAILED,
            ) from error
        if not isinstance(error, OSError):
            raise
        raise WsssError(
            f"Expected room and the right to write in {out}: {error.strerror or error}.",
            "Mend it and run the same command again: it goes on from the state saved last.",
        ) from error


def _loader_died(error: Exception) -> bool:
    """Whether a loader process was killed: PyTorch's own error, or that of reading from one."""
    if isinstance(error, RuntimeError):
        return "DataLoader worker (pid" in str(error)
    return isinstance(error, (ConnectionError, EOFError))
