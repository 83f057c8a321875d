"""Who writes into a folder: one run, or several workers that share its shards out.

POSIX record locks on one small file. The system drops them with the process that holds them,
however it ends, so nothing has to be cleaned up; they reach over NFS to other machines.
"""

import errno
import fcntl
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wsssfast.errors import WsssError
from wsssfast.files import output_folder

NAME = ".wsssfast.lock"
_REMEDY = "Wait for it, choose another --out, or start all of them with --worker i/n."
_DOOR = 1 << 40  # the byte of the worker that is coming in
_HELD = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # what file systems without them say


class FolderLock:
    """The lock file of a folder: byte 0 is the folder's, byte 1 + n that of shard n."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def claim(self, index: int) -> bool:
        """Take a shard for this process; False where another one has it."""
        return self._lock(fcntl.LOCK_EX, 1 + index)

    def release(self, index: int) -> None:
        """Give a shard back."""
        self._lock(fcntl.LOCK_UN, 1 + index, wait=True)

    def alone(self) -> bool:
        """Take the folder for this process; False where another one is there."""
        return self._lock(fcntl.LOCK_EX, 0)

    def share(self) -> bool:
        """Take the folder together with others that share it; False where one is there alone."""
        return self._lock(fcntl.LOCK_SH, 0)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until no other worker is coming in, and let none in meanwhile."""
        self._lock(fcntl.LOCK_EX, _DOOR, wait=True)
        try:
            yield
        finally:
            self._lock(fcntl.LOCK_UN, _DOOR, wait=True)

    def say(self, purpose: str) -> None:
        """Write down what workers are there for."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, purpose.encode(), 0)

    def heard(self, purpose: str) -> bool:
        """Whether that is what the first of them wrote."""
        said = purpose.encode()
        return os.pread(self._descriptor, len(said) + 1, 0) == said

    def _lock(self, how: int, byte: int, *, wait: bool = False) -> bool:
        try:
            fcntl.lockf(self._descriptor, how if wait else how | fcntl.LOCK_NB, 1, byte)
        except OSError as error:
            if error.errno in _HELD:
                return False
            if error.errno not in _NO_LOCKS:
                raise
            warnings.warn(
                f"This file system has no locks ({error.strerror}); see to it that no other run "
                "writes into the same folder.",
                RuntimeWarning,
                stacklevel=2,
            )
        return True


@contextmanager
def folder_lock(out: Path, shared_for: str = "", remedy: str = _REMEDY) -> Iterator[FolderLock]:
    """Keep other runs out of a folder for as long as this one writes there.

    Args:
        out: the folder; made where absent.
        shared_for: let other workers in that come for the same purpose, told by this text; alone
            where it is empty.
        remedy: what to do where another run is there.

    Raises:
        WsssError: it is no folder, or another run is writing there.
    """
    output_folder(out, "the results")
    descriptor = os.open(out / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        lock = FolderLock(descriptor)
        if shared_for:
            _come_in(lock, out, shared_for, remedy)
        elif not lock.alone():
            raise _occupied(out, remedy)
        yield lock
    finally:
        os.close(descriptor)


def _come_in(lock: FolderLock, out: Path, purpose: str, remedy: str) -> None:
    """Share the folder; the first worker says what for, the others must have come for that."""
    with lock.turn():
        if lock.alone():
            lock.say(purpose)
            lock.share()
        elif not lock.share():
            raise _occupied(out, remedy)
        elif not lock.heard(purpose):
            raise WsssError(
                f"Expected workers of one configuration in {out}, found another's at work.",
                "Start all of them with the same options.",
            )


def _occupied(out: Path, remedy: str) -> WsssError:
    return WsssError(
        f"Expected to be the only run that writes into {out}, found another at work.", remedy
    )
