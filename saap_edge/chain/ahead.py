"""Telling what a run is about to do (stages, time, memory), and refusing one that the memory cannot hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saap_edge.chain.estimate import ESTIMATED, HIGH, LOW, Estimate, estimate_stages, measure_rates
from saap_edge.errors import SaapError
from saap_edge.machine.launch import processes
from saap_edge.machine.limits import memory
from saap_edge.progress import duration

__all__ = ["GIB", "announce", "check_memory", "plan_lines", "span"]

GIB = 2**30
SHORT = 5.0  # seconds: a single stage that takes no longer is not announced
LESS = {
    "write": "a text file as data.calibration takes less",
    "score": "score: {dtype: bfloat16, checkpointing: true} or more score.batches take less",
    "recover": "recover.top, recover.checkpointing and a smaller recover.batch take less",
    "bench": "fewer bits (export.formats) take less",
    "verify": "fewer bits (export.formats) take less",
}


def announce(context: Any, steps: list[Any]) -> list[str]:
    """What `run_stages` is about to do, in lines; no lines for short work. Raises SaapError when a stage needs more
    memory than the machine has."""
    todo = [step.stage.name for step in steps if not step.cached]
    if not ESTIMATED & set(todo) or processes() > 1:  # a launch shares the work out
        return []
    rates = measure_rates()
    if rates is None:
        return [f"to do, on a GPU: {', '.join(todo)}"]
    found = estimate_stages(tuple(todo), context.spec, context.recipe, rates)
    total, free = memory()
    note, lines = check_memory(found, total, free), []
    if len(todo) > 1 or sum(estimate.seconds for estimate in found.values()) * HIGH > SHORT:
        names = {step.stage.name: step.cached for step in steps}
        measured = f"{rates.flops / 1e9:.0f} GFLOP/s measured here"
        lines = plan_lines(names, found, measured, total, free)
    return [*lines, f"note: {note}"] if note else lines


def plan_lines(
    names: Mapping[str, bool], found: Mapping[str, Estimate], measured: str, total: int, free: int
) -> list[str]:
    """The announcement of a run, in lines.

    Args:
        names: stages in their order, and whether each is already there.
        found: estimates of the stages that take time, by name.
        measured: what the estimates rest on.
        total, free: memory of the machine, bytes.

    >>> stages, found = {"score": True, "bank": False}, {"bank": Estimate(seconds=100, bytes=2 * GIB)}
    >>> print(*plan_lines(stages, found, "50 GFLOP/s", 8 * GIB, 6 * GIB), sep="\\n")
    to do:
      score    already there
      bank     60 s to 3 min, 2.0 GiB
      in all   about 60 s to 3 min and 2.0 GiB of memory (6.0 of 8.0 GiB are free); an estimate, from 50 GFLOP/s
    """
    lines = []
    for name, cached in names.items():
        told = f"{span(found[name].seconds)}, {found[name].bytes / GIB:.1f} GiB" if name in found else "seconds"
        lines.append(f"  {name:8} {'already there' if cached else told}")
    seconds, most = sum(each.seconds for each in found.values()), max(each.bytes for each in found.values())
    summary = (
        f"about {span(seconds)} and {most / GIB:.1f} GiB of memory ({free / GIB:.1f} of {total / GIB:.1f} GiB are "
        f"free); an estimate, from {measured}"
    )
    if len(names) == 1:
        return [f"{next(iter(names))}: {summary}"]
    return ["to do:", *lines, f"  in all   {summary}"]


def check_memory(found: Mapping[str, Estimate], total: int, free: int) -> str | None:
    """A warning where a stage needs more memory than is free, else None. `total` and `free` are bytes.

    Raises SaapError where a stage needs more memory than the machine has.
    """
    name = max(found, key=lambda name: found[name].bytes)
    needed = found[name].bytes
    less = LESS.get(name, "a smaller model or fewer score.samples take less")
    if needed > total:
        raise SaapError(
            f"{name} needs about {needed / GIB:.1f} GiB of memory, and there are {total / GIB:.1f} GiB here, swap "
            f"included: {less}"
        )
    if needed > free:
        return (
            f"{name} needs about {needed / GIB:.1f} GiB of memory, of which {free / GIB:.1f} GiB are free: end other "
            f"programs, or it may be killed ({less})"
        )
    return None


def span(seconds: float) -> str:
    """The time in which an estimate of so many seconds lies."""
    low, high = duration(seconds * LOW), duration(seconds * HIGH)
    unit = high.partition(" ")[2]
    return f"{low.removesuffix(f' {unit}')} to {high}" if low != high else high
