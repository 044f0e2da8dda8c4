"""What a sweep is about to do, in lines: how many stages of each name, how many recipes share them, time and memory."""

from __future__ import annotations

from collections import defaultdict

from saap_edge.chain.ahead import GIB, span
from saap_edge.sweeping.graph import Graph, Node

__all__ = ["ahead_lines", "whole_seconds"]


def ahead_lines(graph: Graph, here: int, together: int, where: str) -> list[str]:
    """Lines on a graph with stages that are to be made. This machine has `here` CPUs, those that make them, which
    `where` names, have `together`."""
    wanted = sum(len(member.keys) for member in graph.members.values())
    there = len(graph.nodes) - len(graph.todo)
    lines = [
        f"{len(graph.members)} recipes need {wanted} stages; as some are shared, that is {len(graph.nodes)}, of which "
        f"{there} are already there. To do:"
    ]
    stages = dict.fromkeys(node.stage for node in graph.nodes.values())
    lines += [_line(stage, [node for node in graph.nodes.values() if node.stage == stage]) for stage in stages]
    seconds, most = whole_seconds(graph, here, together), max(node.estimate.bytes for node in graph.todo)
    told = f"about {span(seconds)}" if seconds else "time not known (a GPU works)"
    return [*lines, f"  in all   {told}, at most {most / GIB:.1f} GiB a stage; on {where}"]


def _line(stage: str, nodes: list[Node]) -> str:
    """How often a stage is made, with how many CPUs, and what the longest of them takes."""
    todo = [node for node in nodes if not node.there]
    if not todo:
        return f"  {stage:8} already there"
    alone = "alone, one at a time" if todo[0].measures else f"with {todo[0].cpus} CPU{'s' * (todo[0].cpus > 1)}"
    seconds, most = max(node.estimate.seconds for node in todo), max(node.estimate.bytes for node in todo)
    each = f", each {span(seconds)} of this machine, {most / GIB:.1f} GiB" if seconds else ""
    made = f"{len(todo)} of {len(nodes)}" if len(todo) < len(nodes) else f"{len(todo)}"
    return f"  {stage:8} {made} for {sum(len(node.users) for node in nodes)} recipes, {alone}{each}"


def whole_seconds(graph: Graph, here: int, together: int) -> float:
    """Seconds of all stages that are to be made: shared out over all CPUs, but no shorter than the longest chain of
    them; the measurements of a board one after another. 0 where no times are known. Estimates are for `here` CPUs.

    What rests on measurements takes hardly any time, and is counted in the first part.
    """
    todo = [node for node in graph.todo if not node.measures]
    measured: dict[str, float] = defaultdict(float)
    for node in graph.todo:
        if node.board is not None:
            measured[node.board if together > here else ""] += node.estimate.seconds
    chains: dict[str, float] = {}
    for node in todo:
        own = node.estimate.seconds * here / node.cpus
        chains[node.key] = own + max((chains.get(key, 0.0) for key in node.inputs.values()), default=0.0)
    shared = sum(node.estimate.seconds for node in todo) * here / together
    return max(shared, max(chains.values(), default=0.0)) + max(measured.values(), default=0.0)
