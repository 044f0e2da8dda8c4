"""A whole sweep: its recipes are opened and checked, become one graph, and are run here or on a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from saap_edge.cache import alone, clean_leftovers
from saap_edge.chain.ahead import check_memory
from saap_edge.chain.context import Context, Known, open_context
from saap_edge.chain.rates import measure_rates
from saap_edge.documents.sweep import Sweep
from saap_edge.errors import EXIT_OK, SaapError
from saap_edge.progress import Progress
from saap_edge.sweeping.ahead import ahead_lines
from saap_edge.sweeping.document import Entry
from saap_edge.sweeping.folders import publish_runs
from saap_edge.sweeping.graph import Graph, build_graph
from saap_edge.sweeping.machines import Machines, cpus_here
from saap_edge.sweeping.results import sweep_document
from saap_edge.sweeping.watch import Watch

__all__ = ["run_sweep"]

DOCUMENT = "sweep.json"


def run_sweep(
    entries: Sequence[Entry], out: Path, machines: Machines, listener: Progress, *, threads: int | None = None,
    dry: bool = False,
) -> Sweep:  # fmt: skip
    """Run a sweep in the folder `out`, or with `dry` say what is to be done.

    Writes out/stages, out/runs and out/sweep.json. `threads` are CPUs of a stage, at most. Returns the document.

    Raises SaapError before anything is written for all that a recipe's own run would refuse, of all recipes at once,
    and where another sweep works in `out`. What fails later is in the document.
    """
    started = time.monotonic()
    with listener.bar("checking the recipes and the models", float(len(entries))) as advance:
        contexts, warnings = _opened(entries, machines, listener, advance)
    with listener.bar("hashing the models and the texts", None):
        recipes = [(entry.name, entry.values, context) for entry, context in zip(entries, contexts, strict=True)]
        graph = build_graph(recipes, out / "stages", measure_rates(), machines.cpus, threads)
    for warning in warnings:
        listener.note(warning)
    note = _checked_memory(graph, machines)
    watch = Watch(graph, listener)
    if graph.todo:
        listener.ahead(
            [*ahead_lines(graph, cpus_here(), machines.together, machines.where), *([f"note: {note}"] if note else [])]
        )
    if dry:
        return sweep_document(graph, watch.states, notes=warnings).model_copy(update={"exit_code": EXIT_OK})
    with _folder(out), alone(out / ".sweep"):
        clean_leftovers(graph.root)
        with watch.bar():
            machines.run(graph, watch)
        publish_runs(graph, {key for key, state in watch.states.items() if state.became in ("there", "made")})
        document = sweep_document(graph, watch.states, round(time.monotonic() - started, 1), warnings)
        document.write(out / DOCUMENT)
    return document


def _opened(
    entries: Sequence[Entry], machines: Machines, listener: Progress, advance: Callable[[float], None]
) -> tuple[list[Context], list[str]]:
    """The context of every recipe, and their warnings, each once. Raises SaapError with the faults of all recipes."""
    known, contexts, faults = Known(), [], dict[str, list[str]]()
    for entry in entries:
        try:
            board = machines.board(entry.recipe.target)
            contexts.append(open_context(entry.recipe, None, listener.bar, known=known, board=board))
        except SaapError as error:
            faults.setdefault(str(error), []).append(entry.name)
        advance(1)
    if faults:
        raise SaapError("; ".join(f"{_told(names)}: {fault}" for fault, names in faults.items()))
    return contexts, list(dict.fromkeys(warning for context in contexts for warning in context.warnings))


def _told(names: Sequence[str]) -> str:
    """Recipes in words.

    >>> _told(["a"]), _told(["a", "b"]), _told("abcde")
    ('recipe a', 'recipes a, b', 'recipes a, b and 3 others')
    """
    few = names if len(names) <= 3 else names[:2]
    more = f" and {len(names) - len(few)} others" if len(names) > len(few) else ""
    return f"recipe{'s' * (len(names) > 1)} {', '.join(few)}{more}"


def _checked_memory(graph: Graph, machines: Machines) -> str | None:
    """A warning where a stage needs more memory than is free. Raises SaapError where one needs more than there is."""
    most = {node.stage: node.estimate for node in sorted(graph.todo, key=lambda node: node.estimate.bytes)}
    return check_memory(most, *map(int, machines.memory)) if most else None


@contextmanager
def _folder(out: Path) -> Iterator[None]:
    """Make the sweep's folder. Raises SaapError where that cannot be."""
    if out.exists() and not out.is_dir():
        raise SaapError(f"--out '{out}' is a file: choose a folder")
    try:
        (out / "stages").mkdir(parents=True, exist_ok=True)
        (out / "runs").mkdir(exist_ok=True)
    except OSError as error:
        raise SaapError(f"cannot create '{out}': {error.strerror}") from None
    yield
