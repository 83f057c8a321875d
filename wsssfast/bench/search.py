"""Search for launch settings: one changed at a time, as long as that is faster."""

from collections.abc import Callable, Iterator
from typing import Any

from wsssfast.kernels.launch import Row

Settings = dict[str, int]
GAIN = 0.98  # of the time: what gains less is noise
_BLOCKS, _WARPS, _STAGES = (16, 256), (1, 16), (1, 6)
_ROUNDS = 3  # of changes to everything


def climb(
    start: Settings, measure: Callable[[Settings], float | None]
) -> tuple[Settings, float, int, int]:
    """Change one setting at a time as long as that is faster.

    Args:
        start: settings in use.
        measure: milliseconds; None where they cannot run.

    Returns:
        The best settings, their milliseconds, how many others were tried, and how many failed.
    """
    time = measure(start)
    if time is None:
        raise RuntimeError(f"the settings in use do not run: {start}")
    best, seen, failed = start, [start], 0
    for _ in range(_ROUNDS):
        before = best
        for key in start:
            for candidate in neighbours(best, key):
                if candidate in seen:
                    continue
                seen.append(candidate)
                found = measure(candidate)
                failed += found is None
                if found is not None and found < GAIN * time:
                    best, time = candidate, found
        if best == before:
            break
    return best, time, len(seen) - 1, failed


def neighbours(settings: Settings, key: str) -> Iterator[Settings]:
    """The settings with one of them a step down, and a step up."""
    value = settings[key]
    if key == "num_stages":
        steps, (least, most) = (value - 1, value + 1), _STAGES
    else:
        steps, (least, most) = (value // 2, value * 2), _WARPS if key == "num_warps" else _BLOCKS
    for step in steps:
        if least <= step <= most:
            yield {**settings, key: step}


def merged(known: list[Row], new: list[Row]) -> list[Row]:
    """New rows, and the known ones that are for other sizes, the narrowest first."""

    def limits(row: Row) -> tuple[Any, ...]:
        return (row.get("arch"), row.get("bits"), row.get("width", 0), row.get("up_to"))

    replaced = [limits(row) for row in new]
    return sorted([*new, *(row for row in known if limits(row) not in replaced)], key=limits)
