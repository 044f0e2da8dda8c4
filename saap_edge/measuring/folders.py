"""Measuring export folders: dense and pruned by turns in every format, or any artifact by turns with another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from saap_edge.artifacts import Manifest, engine_of, read_manifest
from saap_edge.documents.bench import Bench
from saap_edge.errors import SaapError
from saap_edge.measuring.chat import with_chat
from saap_edge.measuring.measure import BenchConditions, Subject, measure, steps_of
from saap_edge.progress import Bar

__all__ = ["bench_folders", "measure_beside"]


def bench_folders(
    dense: Path, pruned: Path, conditions: BenchConditions, bar: Bar,
    decided: Callable[[Bench], bool] = lambda document: True,
) -> Bench:  # fmt: skip
    """Measure every format that both export folders hold, and return the bench document.

    `pruned` may be the dense folder itself; the gate then judges the dense model. `decided` as in `measuring.measure`.
    Raises SaapError when an artifact was changed since export, the folders share no format, or an artifact does not
    run.
    """
    first, second = _subjects(dense), _subjects(pruned, "pruned")
    shared = [name for name in second if name in first]
    if not shared:
        raise SaapError(f"'{dense}' and '{pruned}' share no format: there is nothing to compare")
    subjects = [side[name] for name in shared for side in (first, second)]
    comparisons = [(first[name].name, second[name].name) for name in shared]
    with bar("bench: rounds", steps_of(len(subjects), conditions)) as advance:
        document = measure(subjects, comparisons, conditions, advance, decided)
    return with_chat(document, subjects, conditions, bar)


def measure_beside(
    anchor: tuple[Path, str], artifact: tuple[Path, str], conditions: BenchConditions, bar: Bar
) -> Bench:  # fmt: skip
    """Measure an artifact by turns with the anchor, and return the bench document.

    Both are (export folder, format). The artifact has the role candidate, the anchor baseline. Raises SaapError when
    one was changed since export, or does not run.
    """
    (base, base_format), (folder, name) = anchor, artifact
    subjects = [_subjects(base, "baseline")[base_format], _subjects(folder, "candidate")[name]]
    with bar(f"measure: {name}", steps_of(2, conditions)) as advance:
        return measure(subjects, [(subjects[0].name, subjects[1].name)], conditions, advance)


def _subjects(folder: Path, role: str | None = None) -> dict[str, Subject]:
    """The artifacts of an export folder by format. They have `role`, or the role of their manifest."""
    manifest: Manifest = read_manifest(folder)
    return {
        artifact.format: Subject(
            name=f"{role or manifest.role} {artifact.format}", role=role or manifest.role,
            engine=engine_of(artifact.format), format=artifact.format, path=folder / artifact.path,
            projection_bytes=artifact.projection_bytes, file_bytes=artifact.bytes, parameters=manifest.parameters,
            model=manifest.lineage.get("model"),
        )
        for artifact in manifest.artifacts
    }  # fmt: skip
