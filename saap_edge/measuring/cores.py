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
from saap_edge.machine.sensors import read_number, read_text

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
    fast = ALIKE * max(speed.values())
    cores: dict[str, list[int]] = {}
    for cpu in (cpu for cpu in speed if speed[cpu] >= fast):
        # The kernel lists the CPUs of a physical core with the same text for each of them.
        siblings = read_text(system / f"cpu{cpu}" / "topology" / "thread_siblings_list")
        cores.setdefault(siblings or str(cpu), []).append(cpu)
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


def _speed(cpu: Path) -> float:
    """What the kernel takes a CPU's speed to be: its capacity on Arm, elsewhere its highest clock; 1 where unknown."""
    return read_number(cpu / "cpu_capacity") or read_number(cpu / "cpufreq/cpuinfo_max_freq") or 1
