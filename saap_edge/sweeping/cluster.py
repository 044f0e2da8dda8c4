"""Running a sweep's stages on a Ray cluster: every stage is a task, and Ray's scheduler and retries do the rest.

A task asks for its CPUs and memory, for a GPU where the cluster has some, and for measuring for the resource
`board:NAME` and all CPUs of such a node, so that nothing runs beside it. Where a node does not see the sweep's folder,
stage folders travel through Ray's object store. This process keeps every finished stage in the sweep's folder.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saap_edge.cache import clean_leftovers
from saap_edge.chain.context import Board
from saap_edge.errors import SaapError
from saap_edge.progress import Progress
from saap_edge.sweeping import remote_job
from saap_edge.sweeping.graph import Graph
from saap_edge.sweeping.job import identity
from saap_edge.sweeping.machines import Machines
from saap_edge.sweeping.parcels import outside_files
from saap_edge.sweeping.tasks import Plan, run_tasks
from saap_edge.sweeping.watch import Watch
from saap_edge.targets import Target, load_target

__all__ = ["cluster"]

REACHED = 10.0  # seconds until a cluster has answered
ATTEMPTS = 3  # to join as a client
LOOK = 300.0  # seconds until every node has answered: the first import of torch may be slow
CLEARED = 10.0  # seconds until every node has cleared away
HEAD = 6379  # Ray's own port


@dataclass(frozen=True)
class _Node:
    """A node with CPUs: its id, what `look` found there, and its resources."""

    id: str
    found: Mapping[str, Any]
    resources: Mapping[str, float]


@contextmanager
def cluster(
    address: str, out: Path, listener: Progress, *, board: str | None = None, carry: bool = False
) -> Iterator[Machines]:
    """The machines of a Ray cluster, while it is connected.

    Args:
        address: HOST:PORT, ray://HOST:PORT, or "auto" for the cluster that this machine is in.
        out: the sweep's folder.
        listener: is told that it takes a while.
        board: name of the board that measures for all targets; None: each target its own.
        carry: send stage folders through the object store even where all nodes see `out`.

    Raises SaapError where Ray is not installed, the cluster cannot be reached, or a node has other versions.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise SaapError("--ray needs the package ray: pip install 'saap-edge[cluster]'") from None
    _check_reachable(address)
    # Ray prints to stdout what happens to workers; stdout is for one document.
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        _join(ray, address)
        try:
            with listener.bar("looking at the nodes of the cluster", None):
                machines = _machines(ray, address, out, board, carry)
            yield machines
        finally:
            ray.shutdown()


def _join(ray: Any, address: str) -> None:
    """Connect Ray. Raises SaapError that has its reason.

    At a ray:// address Ray's server starts a process for each client, which now and then ends at once (seen with
    2.60.0): another attempt helps.
    """
    for left in range(ATTEMPTS if address.startswith("ray://") else 1, 0, -1):
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=True)
            return
        except Exception as error:  # Ray's own have no common class here
            if left == 1 or not isinstance(error, ConnectionAbortedError):
                reason = _first_line(error)
                raise SaapError(f"--ray {address}: the cluster cannot be joined: {reason}") from None


def _check_reachable(address: str) -> None:
    """Raise SaapError where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not (host and port.isdigit()):
        raise SaapError(f"--ray {address}: give HOST:{HEAD}, ray://HOST:10001, or auto on a node of the cluster")
    try:
        socket.create_connection((host, int(port)), REACHED).close()
    except OSError as error:
        raise SaapError(
            f"--ray {address}: no cluster answers there ({error.strerror or error}): start one with "
            f"`ray start --head`, or give its address"
        ) from None


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _machines(ray: Any, address: str, out: Path, board: str | None, carry: bool) -> Machines:
    nodes = _nodes(ray, address)
    cpus = [int(node.resources["CPU"]) for node in nodes]
    memory = max(node.resources.get("memory", 0.0) for node in nodes)
    gpus = any(node.resources.get("GPU") for node in nodes)

    def measuring(target: str) -> Board | None:
        found = _offering(nodes, board or load_target(target).name)[0].found
        return Board(found["facts"], Target.model_validate(found["host"]))

    def run(graph: Graph, watch: Watch) -> None:
        if graph.todo:
            _run(ray, graph, watch, nodes, out, gpus=gpus, board=board, carry=carry)

    where = f"a Ray cluster of {len(nodes)} nodes with {sum(cpus)} CPUs{' and GPUs' if gpus else ''}"
    return Machines(max(cpus), sum(cpus), (memory, memory), measuring, run, where)


def _nodes(ray: Any, address: str) -> list[_Node]:
    """The nodes that compute. Raises SaapError for one that would make other stages than this machine."""
    own = identity()
    alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if not alive:
        raise SaapError(f"--ray {address}: the cluster has no node with CPUs")
    looks = {node["NodeID"]: on_node(ray, remote_job.look, node["NodeID"]).remote() for node in alive}
    found = []
    for node in alive:
        name = f"node {node['NodeManagerHostname']}"
        try:
            there = ray.get(looks[node["NodeID"]], timeout=LOOK)
        except Exception as error:  # the node cannot import saap_edge, or does not answer
            reason = _first_line(getattr(error, "cause", None) or error)
            raise SaapError(f"--ray {address}: {name} needs saap-edge[compile,cluster] as here: {reason}") from None
        differs = {key for key in {*own, *there["identity"]} if own.get(key) != there["identity"].get(key)}
        if differs:
            told = ", ".join(f"{key} {there['identity'].get(key)}, here {own.get(key)}" for key in sorted(differs))
            raise SaapError(f"--ray {address}: {name} has other versions: {told}")
        found.append(_Node(node["NodeID"], there, node["Resources"]))
    return found


def on_node(ray: Any, function: Any, node: str) -> Any:
    """The function as a task of one node, which takes no CPU."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    strategy = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    return ray.remote(num_cpus=0, max_retries=1, scheduling_strategy=strategy)(function)


def _offering(nodes: list[_Node], name: str) -> list[_Node]:
    """The nodes that offer a board. Raises SaapError where none does, or two of them are different machines."""
    offered = [node for node in nodes if node.resources.get(f"board:{name}")]
    if not offered:
        raise SaapError(
            f"no node of the cluster has the resource board:{name}: start one with ray start --address ... "
            f"--resources '{{\"board:{name}\": 1}}', or say with --board which board measures"
        )
    kinds = {(node.found["facts"]["cpu"], node.found["facts"]["cores"]) for node in offered}
    if len(kinds) > 1:
        told = " and ".join(f"{cpu} with {cores} CPUs" for cpu, cores in sorted(kinds))
        raise SaapError(f"nodes with the resource board:{name} are different machines: {told}")
    return offered


def _run(
    ray: Any, graph: Graph, watch: Watch, nodes: list[_Node], out: Path, *, gpus: bool, board: str | None, carry: bool
) -> None:  # fmt: skip
    """Make the stages of a graph, and clear away on the nodes what they needed for it."""
    session = secrets.token_hex(8)
    probe = (out / ".sweep" / session).absolute()
    probe.write_text(session, encoding="utf-8")
    recipes = [member.context.recipe.model_dump(mode="json") for member in graph.members.values()]
    paths = [probe, *{path for recipe in recipes for path in outside_files(recipe).values()}]
    try:
        asked = [on_node(ray, remote_job.sees, node.id).remote([*map(str, paths)]) for node in nodes]
        seen = [all(answers) for answers in zip(*ray.get(asked), strict=True)]
    finally:
        probe.unlink()
    unseen = set(paths) if carry else {path for path, yes in zip(paths, seen, strict=True) if not yes}
    boards = {node.board for node in graph.todo if node.board is not None}
    resources = {name: _resource(nodes, board or name) for name in boards}
    plan = Plan(session, probe in unseen, unseen, gpus, resources)
    try:
        run_tasks(ray, graph, watch, plan)
    finally:
        clean_leftovers(graph.root)  # of nodes that died
        with suppress(Exception):  # a node that was lost has nothing to clear
            ray.get([on_node(ray, remote_job.clear, node.id).remote(session) for node in nodes], timeout=CLEARED)


def _resource(nodes: list[_Node], name: str) -> tuple[str, float]:
    """The resource of a board, and the CPUs of a node that has it."""
    return f"board:{name}", min(node.resources["CPU"] for node in _offering(nodes, name))
