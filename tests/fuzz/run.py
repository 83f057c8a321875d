"""Break files and read them, for as long as is wanted; ends in a table and one JSON line.

    python tests/fuzz/run.py --seconds 3600 --keep odd

Each case is a whole sample with one change, drawn from a number: `--only "CAM shards" --first 1234
--cases 1` makes case 1234 again. It ends as `read` (the change did no harm) or `refused` (our own
error), or in what is a defect: another error, a crash, no end in 30 s, memory beyond the limit, a
process, a connection or a pickle's call begun, a file written outside its folder. Defects are kept
in `--keep` and make the exit code 1.
"""

import argparse
import faulthandler
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CASES = 200  # of one process
LIMIT = 12 << 30  # bytes of address space; PyTorch alone takes some
PATIENCE = 30  # seconds a case
FORBIDDEN = (
    "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class",
    "socket.connect", "os.remove", "shutil.rmtree",
)  # fmt: skip


class TooLong(BaseException):
    """A case has no end."""


class Watch:
    """Sees what Python is asked to do, by its audit events."""

    def __init__(self) -> None:
        self.inside: Path | None = None
        self.seen: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, facts: tuple[Any, ...]) -> None:
        if self.inside is None:
            return
        if event in FORBIDDEN and not str(facts[0] if facts else "").startswith(str(self.inside)):
            self.seen.append(f"{event} {facts!r:.200}")
        if event == "open" and isinstance(facts[0], str | os.PathLike):
            flags = facts[2] if isinstance(facts[2], int) else 0
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and not os.path.realpath(facts[0]).startswith(str(self.inside)):
                self.seen.append(f"written: {facts[0]}")


def child(name: str, first: int, cases: int, keep: Path) -> None:
    """Run some cases; a line of JSON each."""
    sys.path[:0] = [str(HERE), str(HERE.parent / "helpers")]
    import random

    import torch
    from targets import TARGETS

    from wsssfast.errors import BadFile, WsssError

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    target = TARGETS[name]
    watch = Watch()

    def stop(number: int, frame: object) -> None:
        raise TooLong

    signal.signal(signal.SIGALRM, stop)
    with tempfile.TemporaryDirectory() as made:
        whole = Path(made) / "whole" / "sample"
        whole.mkdir(parents=True)
        target.make(whole)
        trial = Path(made).resolve() / "trial"
        (trial / "out").mkdir(parents=True)
        shutil.copytree(whole, trial / "sample")
        target.read(trial / "sample")  # what is refused as it is would test nothing
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
        for number in range(first, first + cases):
            root = Path(made).resolve() / "case"
            (root / "out").mkdir(parents=True)
            sample = root / "sample"
            shutil.copytree(whole, sample)
            print(json.dumps({"begin": number}), flush=True)
            target.change(sample, random.Random(f"{name} {number}"))
            found, told = "read", ""
            signal.alarm(PATIENCE)
            faulthandler.dump_traceback_later(2 * PATIENCE, exit=True)  # where C code has no end
            watch.inside, watch.seen = root, []
            os.environ["XDG_CACHE_HOME"] = str(root / "out")
            try:
                target.read(sample)
            except (WsssError, BadFile) as error:
                found, told = "refused", str(error)
                if "\n" in told.strip() or len(told) > 2000:
                    found = "message of many lines"
            except TooLong:
                found, told = "no end", traceback.format_exc()
            except MemoryError:
                found, told = "memory", traceback.format_exc()
            except Exception:
                found, told = "another error", traceback.format_exc()
            finally:
                signal.alarm(0)
                faulthandler.cancel_dump_traceback_later()
                watch.inside = None
            if watch.seen:
                found, told = "forbidden", "; ".join(watch.seen)
            if found not in ("read", "refused"):
                place = keep / f"{name.replace(' ', '-')}-{number}"
                shutil.copytree(root, place, dirs_exist_ok=True)
                (place / "told.txt").write_text(f"{found}\n{told}", errors="replace")
            print(json.dumps({"case": number, "found": found, "told": told[-300:]}), flush=True)
            shutil.rmtree(root)


def batch(name: str, first: int, cases: int, keep: Path) -> Counter[str]:
    """A process of some cases; where it dies the case in work is a defect, and the rest follows."""
    counts: Counter[str] = Counter()
    while cases > 0:
        words = ["--child", name, "--first", str(first), "--cases", str(cases), "--keep", str(keep)]
        done = subprocess.run(
            [sys.executable, __file__, *words], capture_output=True, text=True, check=False
        )
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        for line in lines:
            if "found" in line:
                counts[line["found"]] += 1
                if line["found"] not in ("read", "refused"):
                    print(
                        f"{name} {line['case']}: {line['found']}: {line['told']}", file=sys.stderr
                    )
        if done.returncode == 0:
            break
        begun = [line["begin"] for line in lines if "begin" in line]
        if not begun:
            raise SystemExit(f"{name} does not start: {done.stderr[-2000:]}")
        counts["crash"] += 1
        print(f"{name} {begun[-1]}: crash {done.returncode}: {done.stderr[-300:]}", file=sys.stderr)
        cases -= begun[-1] + 1 - first
        first = begun[-1] + 1
    return counts


def main() -> int:
    """Take turns among the targets until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--only", help="one target")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-defects"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.first, args.cases, args.keep)
        return 0
    from targets import TARGETS

    names = [args.only] if args.only else list(TARGETS)
    begin, counts = time.monotonic(), {name: Counter[str]() for name in names}
    first = args.first
    with suppress(KeyboardInterrupt):  # what was done is told all the same
        while True:
            for name in names:
                counts[name] += batch(name, first, args.cases, args.keep)
            first += args.cases
            if time.monotonic() - begin >= args.seconds:
                break
    for name, found in counts.items():
        told = ", ".join(f"{n:,} {what}" for what, n in sorted(found.items()))
        print(f"{name}: {sum(found.values()):,} cases: {told}")
    total = sum(counts.values(), Counter())
    print(
        json.dumps({"fuzz": total, "seconds": round(time.monotonic() - begin), "targets": counts})
    )
    return int(bool(set(total) - {"read", "refused"}))


if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parent / "helpers")]
    sys.exit(main())
