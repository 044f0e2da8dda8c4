"""What runs a sweep's stages: this machine, or a cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from saap_edge.chain.context import Board
from saap_edge.machine.limits import allowed, memory
from saap_edge.sweeping.graph import Graph
from saap_edge.sweeping.local import Room, run_here
from saap_edge.sweeping.watch import Watch

__all__ = ["Machines", "cpus_here", "this_machine"]


@dataclass(frozen=True)
class Machines:
    """What runs a sweep's stages.

    Attributes:
        cpus: CPUs that a stage may have, at most.
        together: CPUs of all machines.
        memory: (bytes that a stage may have, bytes that are free now).
        board: the machine that measures for a target, by the target's name; None: this one.
        run: makes the stages of a graph.
        where: the machines in words.
    """

    cpus: int
    together: int
    memory: tuple[float, float]
    board: Callable[[str], Board | None]
    run: Callable[[Graph, Watch], None]
    where: str


def cpus_here() -> int:
    """CPUs that this process may use."""
    return max(1, int(allowed()["cpus"]))


def this_machine(out: Path) -> Machines:
    """This machine as the one that runs a sweep in the folder `out`."""
    import torch

    cpus, (total, free) = cpus_here(), memory()
    room = Room(cpus, free, torch.cuda.is_available())
    return Machines(
        cpus, cpus, (total, free), lambda target: None, lambda graph, watch: run_here(graph, watch, room, out / "logs"),
        f"{cpus} CPUs and {free / 2**30:.1f} GiB of free memory here",
    )  # fmt: skip
