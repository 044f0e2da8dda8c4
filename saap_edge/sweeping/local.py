"""Running a sweep's stages on this machine: as many at a time as its CPUs and memory hold, each in its own process.

First come the stages that no measurement is before, side by side; then the measurements, each alone on the machine;
then what rests on them (gate, report).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saap_edge.cache import clean_leftovers
from saap_edge.errors import EXIT_INPUT
from saap_edge.sweeping.graph import Graph, Node
from saap_edge.sweeping.job import job_of
from saap_edge.sweeping.watch import Watch

__all__ = ["Room", "run_here"]

PATIENCE = 10.0  # seconds for the processes to end
GIB = 2**30


@dataclass(frozen=True)
class Room:
    """What stages may take of this machine together: CPUs and bytes of memory. `gpu`: there are GPUs, and a stage that
    computes on them takes all."""

    cpus: int
    memory: float
    gpu: bool


def run_here(graph: Graph, watch: Watch, room: Room, logs: Path) -> None:
    """Make all stages of the graph that are still to be made.

    What a stage prints is kept in `logs` where it fails. A stage that fails, or whose process dies, ends only those
    that rest on it. Whatever ends this call, finished stages stay and unfinished ones leave nothing.
    """
    if not graph.todo:
        return
    logs.mkdir(exist_ok=True)
    try:
        with _server() as server:
            _Running(graph, watch, room, logs, server).run()
    finally:
        clean_leftovers(graph.root)
        with suppress(OSError):  # not empty: a stage has failed
            logs.rmdir()


@contextmanager
def _server() -> Iterator[subprocess.Popen[bytes]]:
    """The process that starts stages. It is in a session of its own: Ctrl-C is for this process to answer."""
    server = subprocess.Popen(
        [sys.executable, "-m", "saap_edge.sweeping.server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield server
    finally:
        assert server.stdin is not None and server.stdout is not None
        with suppress(OSError):
            server.stdin.close()
        try:
            server.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        server.stdout.close()


@dataclass
class _Stage:
    """A running stage: what it said so far."""

    node: Node
    log: Path
    total: float = 0.0
    done: float = 0.0
    said: dict[str, Any] = field(default_factory=dict)


class _Running:
    def __init__(self, graph: Graph, watch: Watch, room: Room, logs: Path, server: subprocess.Popen[bytes]) -> None:
        self._graph, self._watch, self._room, self._logs, self._server = graph, watch, room, logs, server
        self._stages: dict[str, _Stage] = {}
        self._beneath = graph.beneath_measurements

    def run(self) -> None:
        self._fill()
        lines = iter(self._server.stdout or ())
        while self._stages:
            line = next(lines, None)
            if line is None:
                self._lost()
                return
            told = json.loads(line)
            stage = self._stages[told["id"]]
            if "bar" in told:
                stage.total, stage.done = told["bar"][1], 0.0
            elif "steps" in told:
                stage.done += told["steps"]
                self._watch.moved(stage.node, stage.done / stage.total)
            elif "status" in told:
                del self._stages[told["id"]]
                self._ended(stage, told["status"])
                self._fill()
            else:
                stage.said = told

    def _fill(self) -> None:
        """Start what can run now."""
        for node in sorted(self._now(), key=lambda node: -self._graph.tails[node.key]):
            if self._fits(node):
                self._start(node)

    def _now(self) -> list[Node]:
        """The stages whose turn it is."""
        waiting, nodes = self._watch.waiting(), self._graph.todo
        first = [node for node in nodes if not node.measures and node.key not in self._beneath]
        if any(self._watch.open(node.key) for node in first):
            return [node for node in waiting if not node.measures and node.key not in self._beneath]
        measuring = [node for node in waiting if node.measures]
        if measuring or any(self._stages[key].node.measures for key in self._stages):
            return [] if self._stages else measuring[:1]
        return waiting

    def _fits(self, node: Node) -> bool:
        """Whether there is room beside what runs. A stage that nothing runs beside always fits."""
        running = [stage.node for stage in self._stages.values()]
        taken = self._room.gpu and node.accelerated and any(other.accelerated for other in running)
        return not running or (
            sum(other.cpus for other in running) + node.cpus <= self._room.cpus
            and sum(other.estimate.bytes for other in running) + node.estimate.bytes <= self._room.memory
            and not taken
        )

    def _start(self, node: Node) -> None:
        log = self._logs / f"{node.key}.log"
        log.unlink(missing_ok=True)
        request = {"id": node.key, "job": job_of(self._graph, node), "log": str(log)}
        self._stages[node.key] = _Stage(node, log)
        self._watch.started(node)
        try:
            assert self._server.stdin is not None
            self._server.stdin.write(f"{json.dumps(request)}\n".encode())
            self._server.stdin.flush()
        except OSError:  # it has ended: reading from it tells
            return

    def _ended(self, stage: _Stage, status: int) -> None:
        """The process of a stage has ended."""
        if "seconds" in stage.said:
            stage.log.unlink(missing_ok=True)
            self._watch.finished(stage.node, stage.said["seconds"])
        elif "error" in stage.said:
            if not stage.said.get("unexpected"):
                stage.log.unlink(missing_ok=True)
            self._watch.failed(stage.node, stage.said["error"], stage.said["code"])
        else:
            self._watch.failed(stage.node, _death(stage, status), EXIT_INPUT)

    def _lost(self) -> None:
        for stage in self._stages.values():
            self._watch.failed(stage.node, "the process that starts stages was ended from outside", EXIT_INPUT)


def _death(stage: _Stage, status: int) -> str:
    """Why a process ended that told nothing."""
    if not os.WIFSIGNALED(status):
        return f"its process ended with exit code {os.waitstatus_to_exitcode(status)} (see '{stage.log.name}')"
    number = os.WTERMSIG(status)
    name = signal.Signals(number).name
    if number != signal.SIGKILL:
        return f"its process crashed ({name}; see '{stage.log.name}')"
    return (
        f"its process was ended from outside ({name}), as the system does where memory is short: it takes about "
        f"{stage.node.estimate.bytes / GIB:.1f} GiB"
    )
