"""The bench stage: the dense and the pruned artifact of every format, from two export folders."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from saap_edge.bench.measure import BenchConditions, Pair, Subject, measure_pairs, steps_of
from saap_edge.errors import SaapError
from saap_edge.export.artifacts import engine_of, read_manifest

__all__ = ["bench_folders"]


def bench_folders(
    dense: Path,
    pruned: Path,
    conditions: BenchConditions,
    bar: Callable[[str, int], AbstractContextManager[Callable[[int], None]]],
) -> dict[str, Any]:
    """Measure every format that both folders (with manifest.json) hold; returns the bench document.

    Raises SaapError when an artifact was changed since export, they share no format, or one does not run.
    """
    twins = _subjects(dense)
    pairs = [
        Pair(engine_of(name), name, twins[name], subject)
        for name, subject in _subjects(pruned).items()
        if name in twins
    ]
    if not pairs:
        raise SaapError(f"'{dense}' and '{pruned}' share no format: there is nothing to compare")
    with bar("bench: rounds", len(pairs) * steps_of(conditions)) as advance:
        return measure_pairs(pairs, conditions, lambda: advance(1))


def _subjects(folder: Path) -> dict[str, Subject]:
    return {
        artifact.format: Subject(folder / artifact.path, artifact.projection_bytes, artifact.bytes)
        for artifact in read_manifest(folder).artifacts
    }
