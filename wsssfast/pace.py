"""How far a run over many images is, how fast it goes, and what it waits for."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_SEEN = (8, 5.0)  # images and seconds after the first, from which on they tell the speed

Watch = Callable[[str, dict[str, Any]], None]  # called with the name of an event and its facts


class Pace:
    """Counts images and waiting times, and tells whoever watches; safe in several threads.

    Args:
        total: images of the run.
        before: how many of them were done when it began.
        workers: how many share the rest.
        watch: called at each event with the facts given there and these: `images` finished, `of`
            all, `failed` of them, `seconds` since the beginning, `images_per_second` without what
            was done before, `seconds_left` if all workers are as fast, and `waiting`: the share of
            the time spent waiting for decode (images to be read), device (the network) and write.
            Speed counts from the first image on, as what comes before is done once; until enough
            have followed it, it counts from the beginning and `seconds_left` is None.
    """

    def __init__(self, total: int, before: int, workers: int, watch: Watch) -> None:
        self._total, self._watch = total, watch
        self._share = (total - before) / workers
        self._done = self._skipped = self._failed = 0
        self._waits = {"decode": 0.0, "device": 0.0, "write": 0.0}
        self._begun = time.perf_counter()
        self._first: tuple[float, int] | None = None  # when the first came, and how many with it
        self._lock = threading.RLock()

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Add the time of what is inside to the waits for decode, device or write."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._waits[what] += time.perf_counter() - begin

    def advance(self, images: int, failed: int = 0, *, before: bool = False) -> None:
        """Some images are finished, or were `before` this run."""
        with self._lock:
            self._done += images
            self._failed += failed
            self._skipped += images if before else 0
            if self._first is None and self._done > self._skipped:
                self._first = time.perf_counter(), self._done - self._skipped
            self.tell("images")

    def tell(self, event: str, **facts: Any) -> None:
        """Something happened."""
        with self._lock:
            now = time.perf_counter()
            seconds, own = max(1e-9, now - self._begun), self._done - self._skipped
            rate, left = own / seconds, max(0, self._share - own)
            known = own > 0 and left == 0
            first, came = self._first or (now, own)
            if own - came >= _SEEN[0] and now - first >= _SEEN[1]:
                rate, known = (own - came) / (now - first), True
            self._watch(event, {
                **facts,
                "images": self._done,
                "of": self._total,
                "failed": self._failed,
                "seconds": round(seconds, 3),
                "images_per_second": round(rate, 3),
                "seconds_left": round(left / rate, 1) if known else None,
                "waiting": {what: round(t / seconds, 4) for what, t in self._waits.items()},
            })  # fmt: skip
