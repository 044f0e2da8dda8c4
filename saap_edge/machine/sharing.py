"""How many CPUs are free: whether threads that wait should keep a CPU busy, or sleep.

A runtime's threads that spin start their next step sooner. Where others want the CPU, the thread that everyone waits
for is the one without it, and the spinning ones hold it up.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from saap_edge.machine.limits import allowed
from saap_edge.machine.sensors import read_text

__all__ = ["SLACK", "free_cpus", "shared"]

SLACK = 0.25  # of a CPU: what a quiet system's own services take now and then
_SAMPLE = 0.2  # seconds
_STAT = Path("/proc/stat")


def free_cpus(stat: Path = _STAT, seconds: float = _SAMPLE) -> float | None:
    """CPUs that this process may use and nobody used for a moment, in which it only waits. None: the system does not
    tell. A control group's quota counts, however idle the machine is."""
    first = _idle(stat)
    time.sleep(seconds)
    second = _idle(stat)
    if first is None or second is None:
        return None
    shares = [(b[0] - a[0]) / (b[1] - a[1]) for a, b in zip(first, second, strict=False) if b[1] > a[1]]
    return min(sum(shares), float(allowed()["cpus"])) if shares else None


def shared(threads: int, free: float | None) -> bool:
    """Whether so many threads do not all have a CPU of their own, `free` being what `free_cpus` found.

    >>> shared(2, free=1.9), shared(2, free=1.0), shared(1, free=1.0), shared(4, free=None)
    (False, True, False, False)
    """
    return free is not None and threads > free + SLACK


def _idle(stat: Path) -> list[tuple[int, int]] | None:
    """(ticks of idling, all ticks) since the start of each CPU that this process may use; None as in `free_cpus`."""
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    found = []
    for line in (read_text(stat) or "").splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and (mine is None or int(name[3:]) in mine):
            numbers = [int(each) for each in ticks[:8]]  # guest time, after steal, is part of user time
            found.append((numbers[3] + numbers[4], sum(numbers)))
    return found or None
