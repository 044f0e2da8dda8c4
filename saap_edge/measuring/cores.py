"""The cores that a round runs on: random ones for each round, and the same for all its artifacts.

The system would leave each process on the core that it first got, so that the two sides of a comparison ran on
different cores in all rounds. If one core is slower for a while (interrupts, or a neighbour of the virtual machine on
its other hardware thread), so is that side: equal files differed by up to 7 % (benchmarks/gate_noise.py --leave-cores).
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from saap_edge.machine.sensors import read_number, read_text
from saap_edge.measuring.builds import Runner

__all__ = ["draw_cores", "fastest_cores", "share_cores"]

ALIKE = 0.8  # of the fastest core: cores of one kind are nearer (favoured cores), little ones beside big ones are not
SYSTEM = Path("/sys/devices/system/cpu")


def fastest_cores(threads: int, system: Path = SYSTEM) -> list[list[int]]:
    """The physical cores to choose from, as lists of their CPUs (hardware threads): the fastest kind.

    Empty where the system has to choose: all CPUs are needed, there are fewer fast cores than `threads`, or the system
    does not let a process choose.
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


def share_cores(workers: Iterable[Runner], cores: Sequence[Sequence[int]], threads: int, dice: random.Random) -> None:
    """Move all workers onto the same CPUs, chosen from `cores` by lot. Where `cores` is empty, the system chooses."""
    if cores:
        drawn = draw_cores(cores, threads, dice)
        for worker in workers:
            worker.pin(drawn)


def draw_cores(cores: Sequence[Sequence[int]], threads: int, dice: random.Random) -> set[int]:
    """Choose `threads` CPUs by lot, no two of one core.

    >>> cores = [[0, 4], [1, 5], [2, 6]]
    >>> drawn = draw_cores(cores, threads=2, dice=random.Random(0))
    >>> len(drawn), [len(drawn & set(core)) <= 1 for core in cores]
    (2, [True, True, True])
    """
    return {dice.choice(core) for core in dice.sample(cores, threads)}


def _speed(cpu: Path) -> float:
    """A CPU's speed as the kernel states it: its capacity on Arm, else its highest clock; 1 where unknown."""
    return read_number(cpu / "cpu_capacity") or read_number(cpu / "cpufreq/cpuinfo_max_freq") or 1
