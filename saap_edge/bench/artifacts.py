"""The bench stage: the dense and the pruned artifact of every format, from two export folders."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from saap_edge.bench.measure import BenchConditions, Subject, measure, steps_of
from saap_edge.errors import SaapError
from saap_edge.export.artifacts import Manifest, engine_of, read_manifest

__all__ = ["bench_folders"]


def bench_folders(
    dense: Path,
    pruned: Path,
    conditions: BenchConditions,
    bar: Callable[[str, int], AbstractContextManager[Callable[[int], None]]],
    decided: Callable[[dict[str, Any]], bool] = lambda document: True,
) -> dict[str, Any]:
    """Measure every format that both folders (with manifest.json) hold; returns the bench document. `decided` as in
    `measure`.

    Raises SaapError when an artifact was changed since export, they share no format, or one does not run.
    """
    first, second = (_subjects(folder) for folder in (dense, pruned))
    shared = [name for name in second if name in first]
    if not shared:
        raise SaapError(f"'{dense}' and '{pruned}' share no format: there is nothing to compare")
    subjects = [side[name] for name in shared for side in (first, second)]
    comparisons = [(first[name].name, second[name].name) for name in shared]
    with bar("bench: rounds", steps_of(len(subjects), conditions)) as advance:
        return measure(subjects, comparisons, conditions, advance, decided)


def _subjects(folder: Path) -> dict[str, Subject]:
    """By format."""
    manifest: Manifest = read_manifest(folder)
    return {
        artifact.format: Subject(
            name=f"{manifest.role} {artifact.format}", role=manifest.role, engine=engine_of(artifact.format),
            format=artifact.format, path=folder / artifact.path, projection_bytes=artifact.projection_bytes,
            file_bytes=artifact.bytes, parameters=manifest.parameters, model=manifest.lineage.get("model"),
        )
        for artifact in manifest.artifacts
    }  # fmt: skip
