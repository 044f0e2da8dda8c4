"""Which cores a round runs on: drawn by lot each time, and the same for all artifacts of the round.

Left to the system, a process keeps the core it was first given, and the two sides of a comparison run on different ones
for all their rounds. Where one core is slower for a while (a neighbour of the virtual machine on its other hardware
thread, interrupts), that side is: equal files came out up to 7 % apart (benchmarks/gate_noise.py --leave-cores).
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from saap_edge.engines.worker import Worker

__all__ = ["draw_cores", "fastest_cores", "share_cores"]

ALIKE = 0.8  # of the fastest: cores of one kind differ by less (favoured cores), big and little ones by more
SYSTEM = Path("/sys/devices/system/cpu")


def fastest_cores(threads: int, system: Path = SYSTEM) -> list[list[int]]:
    """The physical cores to draw from, each by its CPUs (hardware threads): those of the fastest kind that this process
    may use. Empty where there is nothing to draw, or the system has to decide: all CPUs are needed, there are fewer
    fast cores than `threads`, or the system does not let a process choose.
    """
    if not hasattr(os, "sched_getaffinity"):
        return []
    speed = {cpu: _speed(system / f"cpu{cpu}") for cpu in sorted(os.sched_getaffinity(0))}
    cores: dict[str, list[int]] = {}
    for cpu in speed:
        if speed[cpu] >= ALIKE * max(speed.values()):
            cores.setdefault(_siblings(system / f"cpu{cpu}") or str(cpu), []).append(cpu)
    found = list(cores.values())
    return found if len(found) >= threads and sum(map(len, found)) > threads else []


def share_cores(workers: Iterable[Worker], cores: Sequence[Sequence[int]], threads: int, dice: random.Random) -> None:
    """Move all of them onto the same CPUs, drawn from `cores`; where that is empty, leave them to the system."""
    if cores:
        drawn = draw_cores(cores, threads, dice)
        for worker in workers:
            worker.pin(drawn)


def draw_cores(cores: Sequence[Sequence[int]], threads: int, dice: random.Random) -> set[int]:
    """As many CPUs as there are `threads`, no two of one core."""
    return {dice.choice(core) for core in dice.sample(cores, threads)}


def _speed(cpu: Path) -> int:
    """What the kernel takes a CPU's speed to be: its capacity on Arm, elsewhere its highest clock; 1 where unknown."""
    return next((int(text) for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq") if (text := _read(cpu / name))), 1)


def _siblings(cpu: Path) -> str:
    """The CPUs of the same physical core, as the kernel lists them: the same text for each of them."""
    return _read(cpu / "topology" / "thread_siblings_list")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
