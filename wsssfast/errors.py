"""The one exception of this package and its exit codes."""

DONE = 0
USER_ERROR = 2
SOME_UNREADABLE = 3
INTERRUPTED = 4
WORKER_FAILED = 5
_MOST = 900  # characters of a message that are shown


class WsssError(Exception):
    """Something the user can mend: what was expected, what was found, what to do.

    Attributes:
        message: one line, what was expected and what was found.
        remedy: one line, what to do about it; may be empty.
        code: the exit code of the command line.
    """

    def __init__(self, message: str, remedy: str = "", code: int = USER_ERROR) -> None:
        self.message = " ".join(message.split())
        self.remedy = " ".join(remedy.split())
        self.code = code
        super().__init__(f"{_short(self.message)} {_short(self.remedy)}".strip())


def _short(line: str) -> str:
    """A length that can be read: what a file says may be longer."""
    return line if len(line) <= _MOST else f"{line[:_MOST]} …"


class BadFile(Exception):  # noqa: N818  (it is no error of the program)
    """One input that cannot be used: recorded and counted by a run, which goes on."""

    def __init__(self, reason: str) -> None:
        super().__init__(_short(" ".join(reason.split())))


def listing(names: list[str] | tuple[str, ...], most: int = 3) -> str:
    """`a, b, c and 4 more`: enough of a list for one line."""
    shown = ", ".join(str(name)[:80] for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def counted(number: int, what: str) -> str:
    """`1 shard`, `1,200 shards`, `20 classes`."""
    ending = "" if number == 1 else "es" if what.endswith("s") else "s"
    return f"{number:,} {what}{ending}"
