"""The stages of all recipes of a sweep as one graph. A stage is known by its folder's name, which its inputs decide, so
that one which several recipes share is there once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from saap_edge.cache import stage_folder
from saap_edge.chain.chains import COMPILE, WRITING
from saap_edge.chain.context import Context
from saap_edge.chain.estimate import ESTIMATED, Estimate, Rates, estimate_stages
from saap_edge.chain.run import MEASURED

__all__ = ["Graph", "Member", "Node", "build_graph"]

MINOR = Estimate(seconds=1.0, bytes=400 << 20)  # gate and report: hardly any work
RUNNING = ("verify",)  # runs the artifacts in their engines, with their threads
ON_GPUS = ("score", "bank", "plan", "prune", "recover")  # take a GPU where there is one


@dataclass
class Node:
    """One stage of the graph.

    Attributes:
        key: name of its folder.
        stage: name of the stage.
        recipe: name of the first recipe that needs it, which it is made from.
        inputs: keys of the stages that it reads, by the stage's name.
        there: its folder is there already, and nothing is to be done.
        again: its folder is there, but is to be made again, because a measurement before it is.
        estimate: seconds with all CPUs of this machine, and bytes of memory; seconds are 0 where they are not known.
        cpus: CPUs that it computes with.
        board: name of the board that it measures for; None for a stage that does not measure.
        users: names of all recipes that need it.
    """

    key: str
    stage: str
    recipe: str
    inputs: dict[str, str]
    there: bool
    again: bool
    estimate: Estimate
    cpus: int = 1
    board: str | None = None
    users: list[str] = field(default_factory=list)

    @property
    def measures(self) -> bool:
        """Whether nothing may run beside it."""
        return self.board is not None

    @property
    def accelerated(self) -> bool:
        """Whether it computes on a GPU where there is one."""
        return self.stage in ON_GPUS


@dataclass(frozen=True)
class Member:
    """A recipe in the graph: its name, the values that make it, its context, and the keys of its stages by name."""

    name: str
    values: Mapping[str, object]
    context: Context
    keys: Mapping[str, str]


@dataclass(frozen=True)
class Graph:
    """All stages by key, each after those that it reads, and the recipes. `root` is the folder of stage folders."""

    root: Path
    nodes: dict[str, Node]
    members: dict[str, Member]

    @property
    def todo(self) -> list[Node]:
        """The stages that are to be made, each after those that it reads."""
        return [node for node in self.nodes.values() if not node.there]

    @cached_property
    def after(self) -> dict[str, list[str]]:
        """The keys of the stages that read a stage."""
        found: dict[str, list[str]] = {key: [] for key in self.nodes}
        for node in self.nodes.values():
            for key in node.inputs.values():
                found[key].append(node.key)
        return found

    def below(self, key: str) -> set[str]:
        """The keys of all stages that rest on a stage."""
        found, waiting = set[str](), [key]
        while waiting:
            new = set(self.after[waiting.pop()]) - found
            found |= new
            waiting += new
        return found

    @cached_property
    def tails(self) -> dict[str, float]:
        """Seconds of the longest chain of unmade stages that begins with each, with all CPUs of this machine."""
        found: dict[str, float] = {}
        for node in reversed(self.nodes.values()):
            own = 0.0 if node.there else node.estimate.seconds + 1e-3  # so that the longer chain counts without times
            found[node.key] = own + max((found[key] for key in self.after[node.key]), default=0.0)
        return found

    @cached_property
    def beneath_measurements(self) -> set[str]:
        """The keys of all stages that rest on a measurement which is still to be made."""
        return set[str]().union(*(self.below(node.key) for node in self.todo if node.measures))


def build_graph(
    recipes: Iterable[tuple[str, Mapping[str, object], Context]], root: Path, rates: Rates | None, cpus: int,
    most: int | None = None,
) -> Graph:  # fmt: skip
    """The graph of the recipes' stages.

    Args:
        recipes: of each its name, the values that make it, and its context.
        root: folder of stage folders, where finished stages are looked for.
        rates: what this machine does in a second; None where that is not known.
        cpus: CPUs that stages are computed with.
        most: CPUs of one stage, at most.

    A stage computes with as many CPUs as there are for every stage of its name: one `score` takes all, twelve plans
    share them. That depends on the sweep alone and not on what else is running, and neither do the results then.
    """
    nodes: dict[str, Node] = {}
    members: dict[str, Member] = {}
    for name, values, context in recipes:
        keys = _add(nodes, name, context, root, rates)
        members[name] = Member(name, values, context, keys)
    alike = Counter(node.stage for node in nodes.values())
    for node in nodes.values():
        node.cpus = _share(node, alike[node.stage], members[node.recipe].context, cpus, most)
    return Graph(root, nodes, members)


def _add(nodes: dict[str, Node], name: str, context: Context, root: Path, rates: Rates | None) -> dict[str, str]:
    """Add the stages of one recipe that are not there yet; returns the keys of all of them."""
    folders: dict[str, Path] = {}
    estimates = estimate_stages(ESTIMATED, context.spec, context.recipe, rates or Rates(float("inf"), float("inf")))
    for rule in (*(WRITING if context.recipe.data.written else ()), *COMPILE):
        stage = rule.stage(context)
        folder = folders[rule.name] = stage_folder(stage, folders, context.outside(stage.reads), root)
        key = folder.name
        if key not in nodes:
            inputs = {each: folders[each].name for each in stage.inputs}
            remade = any(_remade(nodes[before]) for before in inputs.values())
            board = context.target.name if rule.name == MEASURED else None
            estimate = estimates.get(rule.name, MINOR)
            there = folder.is_dir()
            nodes[key] = Node(key, rule.name, name, inputs, there and not remade, there and remade, estimate,
                              board=board)  # fmt: skip
        nodes[key].users.append(name)
    return {each: folder.name for each, folder in folders.items()}


def _remade(node: Node) -> bool:
    """Whether what was made from the stage's folder before is out of date: measuring again gives other figures."""
    return node.again or (node.stage == MEASURED and not node.there)


def _share(node: Node, alike: int, context: Context, cpus: int, most: int | None) -> int:
    """The CPUs that a stage computes with; `alike` stages have its name."""
    if node.measures:
        return cpus
    if node.stage in RUNNING:
        return min(cpus, context.threads)
    return max(1, min(cpus // alike, most or cpus))
