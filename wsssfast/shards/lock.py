"""Who writes into a folder of shards: one run, or several workers that share its shards out.

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

NAME = ".wsssfast.lock"
_TALK = 1 << 40  # a byte for the moment in which workers agree
_HELD = (errno.EACCES, errno.EAGAIN)


class FolderLock:
    """The lock file of a folder: byte 0 is the folder's, byte 1 + n that of shard n."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def claim(self, index: int) -> bool:
        """Take a shard for this process; False where another one has it."""
        return self._lock(fcntl.LOCK_EX, 1 + index)

    def release(self, index: int) -> None:
        """Give a shard back."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, 1 + index)

    def join(self, *, shared: bool) -> bool:
        """Take the folder, alone or with others that share it; False where that cannot be."""
        return self._lock(fcntl.LOCK_SH if shared else fcntl.LOCK_EX, 0)

    def agree(self, purpose: str) -> bool:
        """Whether the workers that share the folder are there for one purpose; the first says it.

        Args:
            purpose: the same text exactly where their results may lie side by side.
        """
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX, 1, _TALK)  # waits for its turn
        try:
            said = purpose.encode()
            if self.join(shared=False):  # alone so far
                os.ftruncate(self._descriptor, 0)
                os.pwrite(self._descriptor, said, 0)
                return self.join(shared=True)
            return os.pread(self._descriptor, len(said) + 1, 0) == said
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, _TALK)

    def _lock(self, how: int, byte: int) -> bool:
        try:
            fcntl.lockf(self._descriptor, how | fcntl.LOCK_NB, 1, byte)
        except OSError as error:
            if error.errno in _HELD:
                return False
            warnings.warn(
                f"This file system has no locks ({error.strerror}); see to it that no other run "
                "writes into the same folder.",
                RuntimeWarning,
                stacklevel=2,
            )
        return True


@contextmanager
def folder_lock(out: Path, shared_for: str = "") -> Iterator[FolderLock]:
    """Keep other runs out of a folder for as long as this one writes there.

    Args:
        out: an existing folder.
        shared_for: let other workers in that come for the same purpose, told by this text; alone
            where it is empty.

    Raises:
        WsssError: another run is writing there.
    """
    descriptor = os.open(out / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        lock = FolderLock(descriptor)
        if not lock.join(shared=bool(shared_for)):
            raise WsssError(
                f"Expected to be the only run that writes into {out}, found another at work.",
                "Wait for it, choose another --out, or start all of them with --worker i/n.",
            )
        if shared_for and not lock.agree(shared_for):
            raise WsssError(
                f"Expected workers of one configuration in {out}, found another's at work.",
                "Start all of them with the same options.",
            )
        yield lock
    finally:
        os.close(descriptor)
