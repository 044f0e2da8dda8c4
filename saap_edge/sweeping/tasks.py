"""The stages of a graph as tasks of Ray, all submitted at once: each is given the results of those that it reads.

Ray starts a task when these are there, finds it a node, and runs it again elsewhere when its node dies. This process
waits, keeps what is finished, and gives up tasks that no node which is left can run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saap_edge.errors import EXIT_INPUT, SaapError
from saap_edge.sweeping import remote_job
from saap_edge.sweeping.graph import Graph, Node
from saap_edge.sweeping.job import job_of
from saap_edge.sweeping.parcels import outside_files, pack, unpack
from saap_edge.sweeping.watch import Watch

__all__ = ["Plan", "run_tasks"]

RETRIES = 5  # of a task whose process or node died
TICK = 2.0  # seconds from look to look at the nodes


@dataclass(frozen=True)
class Plan:
    """How a graph is run on a cluster.

    Attributes:
        session: name of the folder that each node keeps for this sweep.
        carried: stage folders travel, because some node does not see the sweep's.
        unseen: files from outside that some node does not see.
        gpus: the cluster has GPUs.
        boards: of each target's name, the resource that measuring asks for and the CPUs of a node that has it.
    """

    session: str
    carried: bool
    unseen: set[Path]
    gpus: bool
    boards: Mapping[str, tuple[str, float]]

    def demand(self, node: Node) -> dict[str, float]:
        """The resources of a node of the cluster that a stage asks for."""
        demand = {"CPU": float(node.cpus), "memory": float(round(node.estimate.bytes))}
        if node.board is not None:  # all CPUs: nothing runs beside it
            resource, cpus = self.boards[node.board]
            demand |= {"CPU": cpus, resource: 1.0}
        return demand | ({"GPU": 1.0} if self.gpus and node.accelerated else {})


def run_tasks(ray: Any, graph: Graph, watch: Watch, plan: Plan) -> None:
    """Make all stages of the graph that are still to be made."""
    _Tasks(ray, graph, watch, plan).run()


@dataclass
class _Task:
    """A submitted stage: references to (seconds, node) and to its folder, which are the same where it stays."""

    node: Node
    told: Any
    folder: Any
    given_up: str | None = field(default=None)


class _Tasks:
    def __init__(self, ray: Any, graph: Graph, watch: Watch, plan: Plan) -> None:
        self._ray, self._graph, self._watch, self._plan = ray, graph, watch, plan
        self._tasks: dict[str, _Task] = {}
        self._settled = set[str]()
        self._packed: dict[Path, Any] = {}
        self._nodes = self._alive()

    def run(self) -> None:
        for node in self._graph.todo:
            self._submit(node)
        while waiting := [task.told for task in self._tasks.values() if task.node.key not in self._settled]:
            if self._ray.wait(waiting, timeout=TICK, fetch_local=False)[0]:
                ready = set(self._ray.wait(waiting, num_returns=len(waiting), timeout=0, fetch_local=False)[0])
                for key in [key for key, task in self._tasks.items() if task.told in ready]:
                    self._settle(key)
            self._look()

    def _submit(self, node: Node) -> None:
        demand, job = self._plan.demand(node), job_of(self._graph, node)
        resources = {name: amount for name, amount in demand.items() if name.startswith("board:")}
        options = {
            "num_cpus": demand["CPU"], "memory": demand["memory"], "num_gpus": demand.get("GPU", 0),
            "resources": resources, "max_retries": RETRIES, "name": node.key,
            "num_returns": 2 if self._plan.carried else 1,
        }  # fmt: skip
        given = [*self._stages(node), *self._files(job["recipe"])]
        labels, parcels = [label for label, _ in given], [parcel for _, parcel in given]
        job |= {"session": self._plan.session, "carried": self._plan.carried}
        found = self._ray.remote(**options)(remote_job.make).remote(job, labels, *parcels)
        told, folder = found if self._plan.carried else (found, found)
        self._tasks[node.key] = _Task(node, told, folder)

    def _stages(self, node: Node) -> list[tuple[tuple[str, str], Any]]:
        """The stages that one reads, as far as they are still to be made, or have to travel: labels and references."""
        found = []
        for key in node.inputs.values():
            if key in self._tasks:
                found.append((("stage" if self._plan.carried else "seen", key), self._tasks[key].folder))
            elif self._plan.carried:
                found.append((("stage", key), self._put(self._graph.root / key)))
        return found

    def _files(self, recipe: Mapping[str, Any]) -> list[tuple[tuple[str, str], Any]]:
        """The files from outside that have to travel: labels and references."""
        files = outside_files(recipe)
        return [((f"file:{field}", path.name), self._put(path)) for field, path in files.items()
                if path in self._plan.unseen]  # fmt: skip

    def _put(self, path: Path) -> Any:
        if path not in self._packed:
            self._packed[path] = self._ray.put(pack(path))
        return self._packed[path]

    def _settle(self, key: str) -> None:
        """Keep what became of a stage. Those that it reads are settled before it: their failure is its reason."""
        if key in self._settled or key not in self._tasks:
            return
        self._settled.add(key)
        task = self._tasks[key]
        for before in task.node.inputs.values():
            self._settle(before)
        if not self._watch.open(key):
            return
        try:
            seconds, machine = self._ray.get(task.told)
            if self._plan.carried:
                unpack(self._ray.get(task.folder), self._graph.root / key, replace=task.node.again)
        except Exception as error:  # what the stage raised, what Ray says of lost processes, or a full disk here
            self._watch.failed(task.node, *self._reason(task, error))
        else:
            self._watch.finished(task.node, seconds, machine)

    def _reason(self, task: _Task, error: Exception) -> tuple[str, int]:
        """Why a stage failed, in a line, and its exit code."""
        if task.given_up:
            return task.given_up, EXIT_INPUT
        cause = getattr(error, "cause", None)
        if isinstance(cause, SaapError):
            return " ".join(str(cause).split()), cause.exit_code
        if isinstance(error, self._ray.exceptions.OutOfMemoryError):
            return "its process was ended because the memory of its node was short", EXIT_INPUT
        if isinstance(error, (self._ray.exceptions.WorkerCrashedError, self._ray.exceptions.NodeDiedError)):
            return f"its process or node died {RETRIES + 1} times: Ray's logs on the node say how", EXIT_INPUT
        said = cause if isinstance(cause, Exception) else error
        return f"{type(said).__name__}: {' '.join(str(said).split())[:300]}", EXIT_INPUT

    def _alive(self) -> dict[str, Mapping[str, Any]]:
        return {node["NodeID"]: node for node in self._ray.nodes() if node["Alive"]}

    def _look(self) -> None:
        """Tell of nodes that were lost, and give up tasks which no node that is left can run: Ray would wait."""
        before, self._nodes = self._nodes, self._alive()
        lost = [before[name] for name in before.keys() - self._nodes.keys()]
        for node in lost:
            self._watch.say(f"node {node['NodeManagerHostname']} was lost: its stages run again elsewhere")
        if lost:
            for task in self._tasks.values():
                self._give_up_unless_possible(task)

    def _give_up_unless_possible(self, task: _Task) -> None:
        demand, left = self._plan.demand(task.node), [node["Resources"] for node in self._nodes.values()]
        if task.node.key in self._settled or any(_has(resources, demand) for resources in left):
            return
        lacking = [name for name in demand if not any(_has(each, {name: demand[name]}) for each in left)]
        task.given_up = f"no node is left that has {' and '.join(lacking or demand)} for it"
        self._ray.cancel(task.told, force=True)


def _has(resources: Mapping[str, float], demand: Mapping[str, float]) -> bool:
    return all(resources.get(name, 0.0) >= amount for name, amount in demand.items())
