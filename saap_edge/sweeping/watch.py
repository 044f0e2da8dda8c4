"""What became of every stage of a sweep, told while it goes on: the bar of the whole, lines for stages, failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from saap_edge.cache import StageResult
from saap_edge.documents.sweep import Became
from saap_edge.progress import Advance, Progress
from saap_edge.sweeping.graph import Graph, Node

__all__ = ["State", "Watch"]

LEAST = 0.1  # seconds of a stage's share in the bar, where no time is known
NEARLY = 0.95  # of a stage, at most, before it has ended
SHOWN = 3  # running stages that the bar names


@dataclass
class State:
    """What became of a stage. `code` is the exit code that its failure stands for; `node` the machine that made it."""

    became: Became = "to do"
    seconds: float | None = None
    error: str | None = None
    code: int | None = None
    node: str | None = None


class Watch:
    """Keeps the state of every stage by key, and tells a listener."""

    def __init__(self, graph: Graph, listener: Progress) -> None:
        self.states = {key: State("there" if node.there else "to do") for key, node in graph.nodes.items()}
        self._graph, self._listener = graph, listener
        self._shares = {node.key: max(LEAST, node.estimate.seconds) for node in graph.todo}
        self._whole = sum(self._shares.values()) or 1.0
        self._done: dict[str, float] = {}  # how much of a running stage, 0 to 1
        self._advance: Advance = lambda steps, note="": None

    @contextmanager
    def bar(self) -> Iterator[None]:
        """Show how far the whole is, in percent of the estimated time."""
        with self._listener.bar("sweep", 100.0) as advance:
            self._advance = advance
            yield

    def waiting(self) -> list[Node]:
        """The stages that are still to be made, and have all that they read."""
        made = ("there", "made")
        return [
            node
            for node in self._graph.nodes.values()
            if self.states[node.key].became == "to do"
            and node.key not in self._done
            and all(self.states[key].became in made for key in node.inputs.values())
        ]

    def open(self, key: str) -> bool:
        """Whether a stage is still to be made, or being made."""
        return self.states[key].became == "to do"

    def say(self, text: str) -> None:
        """Something happened that needs no action."""
        self._listener.say(text)

    def started(self, node: Node) -> None:
        """A stage runs now, for the first time or after the machine that ran it was lost."""
        self._move(node, 0.0)

    def moved(self, node: Node, share: float) -> None:
        """So much of a running stage is done, 0 to 1. Parts of a stage begin anew: what was reached stays."""
        self._move(node, min(NEARLY, share))

    def finished(self, node: Node, seconds: float, machine: str | None = None) -> None:
        """A stage is made."""
        state = self.states[node.key]
        state.became, state.seconds, state.node = "made", seconds, machine
        self._end(node)
        self._listener.stage(StageResult(node.stage, self._graph.root / node.key, False, seconds))

    def failed(self, node: Node, error: str, code: int, machine: str | None = None) -> None:
        """A stage has failed. Those that rest on it are not run; all others go on."""
        state = self.states[node.key]
        if state.became == "failed":
            return
        state.became, state.error, state.code, state.node = "failed", error, code, machine
        self._end(node)
        self._listener.say(f"{node.key} failed: {error}")
        for key in self._graph.below(node.key):
            if self.open(key):
                self.states[key].became = "not run"
                self._end(self._graph.nodes[key])

    def _end(self, node: Node) -> None:
        self._move(node, 1.0)
        self._done.pop(node.key, None)
        self._advance(0.0, self._note())

    def _move(self, node: Node, share: float) -> None:
        before = self._done.get(node.key, 0.0)
        self._done[node.key] = max(before, share)
        step = max(0.0, share - before) * self._shares.get(node.key, 0.0)
        self._advance(100 * step / self._whole, self._note())

    def _note(self) -> str:
        ended = sum(not self.open(node.key) for node in self._graph.todo)
        running = Counter(self._graph.nodes[key].stage for key in self._done if self.open(key))
        names = [f"{count} {name}" if count > 1 else name for name, count in running.items()]
        more = f" and {len(names) - SHOWN} others" if len(names) > SHOWN else ""
        told = f"; {', '.join(names[:SHOWN])}{more} now" if names else ""
        return f"{ended} of {len(self._graph.todo)} stages{told}"
