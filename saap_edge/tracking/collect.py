"""Many runs as one history: finding their documents, putting them in order, and what changed from one to the next."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saap_edge.documents.bench import Bench, BenchedArtifact, Pair
from saap_edge.documents.gate import Gate
from saap_edge.documents.history import History, HistoryPoint, HistoryRun
from saap_edge.documents.measured import Summary
from saap_edge.errors import SaapError
from saap_edge.files import read_json
from saap_edge.gating.read import Measured, read_measured

__all__ = ["collect"]

FILES = ("report.json", "bench.json")  # the first that a folder has is the run's
MIB = 2**20
# Conditions that make figures of two runs incomparable, or explain why they differ.
CONDITIONS = (
    "threads", "prompt_tokens", "decode_tokens", "kv", "ubatch", "spinning", "perplexity_window",
    "perplexity_text_sha256",
)  # fmt: skip


@dataclass(frozen=True)
class _Run:
    """A run before it has its place."""

    label: str
    measured: Measured
    gate: Gate | None


def collect(places: Sequence[str | Path]) -> History:
    """The history of the runs at `places`.

    Args:
        places: report.json and bench.json files, and folders that hold such, at any depth; each may be written as
            LABEL=PATH. A gate.json beside a bench.json is its verdict. Stage folders inside a run's --out folder are
            left out: its report.json says what they say.

    Runs are in the order of their time where every one tells it, else in that of `places`, and of numbers and names in
    a folder. Raises SaapError where there is no run, or a document is damaged.
    """
    runs = [run for place in places for run in _runs_at(str(place))]
    if not runs:
        raise SaapError(
            f"no report.json or bench.json in {', '.join(map(str, places))}: give files, or folders of runs"
        )
    if all(run.measured.bench.measured_at for run in runs):
        runs.sort(key=lambda run: str(run.measured.bench.measured_at))
    told, last = [], dict[tuple[str | None, str], Bench]()
    for run in runs:
        entry, bench = _entry(run), run.measured.bench
        before = last.get((entry.model, entry.board))
        told.append(entry.model_copy(update={"changed": _changed(before, bench) if before else []}))
        last[entry.model, entry.board] = bench
    points = [point for place, run in enumerate(runs) for point in _points(place, run.measured.bench)]
    return History(runs=told, points=points)


def _runs_at(place: str) -> Iterator[_Run]:
    label, found, path = place.partition("=")
    if not found or Path(place).exists():
        label, path = "", place
    root = Path(path)
    files = list(_documents_in(root)) if root.is_dir() else [root]
    if label and len(files) > 1:
        raise SaapError(f"'{place}': {len(files)} runs cannot have one label; give their folders one by one")
    for file in files:
        measured = read_measured(file)
        yield _Run(label or _label(measured.path, root), measured, _gate(measured.path))


def _gate(file: Path) -> Gate | None:
    """The verdict on a run: a section of report.json, or gate.json beside bench.json, under names alike."""
    document = read_json(file)
    if isinstance(document.get("gate"), dict):
        return Gate.parse(document["gate"], f"'{file}'", "gate")
    beside = file.with_name(file.name.removesuffix("bench.json") + "gate.json")
    return Gate.read(beside) if file.name.endswith("bench.json") and beside.is_file() else None


def _documents_in(folder: Path) -> Iterator[Path]:
    """The runs' documents in a folder, numbers in names in the order of their values."""
    for name in FILES:
        if (folder / name).is_file():
            yield folder / name
            return
    for entry in sorted(folder.iterdir(), key=_natural):
        if entry.is_dir() and not entry.is_symlink():
            yield from _documents_in(entry)
        elif entry.name.endswith(FILES):  # as run-12.bench.json
            yield entry


def _natural(path: Path) -> list[Any]:
    """
    >>> sorted(map(Path, ["run10", "run9"]), key=_natural)
    [PosixPath('run9'), PosixPath('run10')]
    """
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", path.name)]


def _label(file: Path, root: Path) -> str:
    """What tells a run from the others: its folder inside `root`, or its own name."""
    if file.name not in FILES:
        return file.name.removesuffix(".json")
    inside = file.parent.relative_to(root) if root.is_dir() else Path()
    return str(inside) if inside != Path() else file.parent.resolve().name


def _entry(run: _Run) -> HistoryRun:
    machine, bench = run.measured.bench.machine, run.measured.bench
    model = run.measured.model or next((entry.model[:12] for entry in bench.artifacts if entry.model), None)
    verdicts = run.gate.verdicts if run.gate else []
    failed = [
        f"{each.artifact or 'no artifact'}: {each.metric} {each.limit}: {each.verdict} ({each.reason})"
        for each in verdicts
        if each.verdict != "pass"
    ]
    verdict = run.gate.verdict if run.gate and verdicts else None
    return HistoryRun.model_validate({
        "label": run.label, "file": str(run.measured.path), "measured_at": bench.measured_at, "model": model,
        "board": machine.host or machine.board or machine.cpu, "verdict": verdict, "failed": failed,
    })  # fmt: skip


def _changed(before: Bench, now: Bench) -> list[str]:
    """Conditions, versions and CPUs that differ, a line each."""
    found = [
        _line(name, getattr(before.conditions, name), getattr(now.conditions, name))
        for name in CONDITIONS
        if getattr(before.conditions, name) != getattr(now.conditions, name)
    ]
    versions = before.conditions.versions, now.conditions.versions
    found += [
        _line(name, versions[0].get(name), versions[1].get(name))
        for name in sorted(versions[0].keys() | versions[1].keys())
        if versions[0].get(name) != versions[1].get(name)
    ]
    if before.machine.cpu != now.machine.cpu:
        found.append(_line("cpu", before.machine.cpu, now.machine.cpu))
    return found


def _line(name: str, before: Any, now: Any) -> str:
    return f"{name}: {'none' if before is None else before} => {'none' if now is None else now}"


def _points(run: int, bench: Bench) -> Iterator[HistoryPoint]:
    pairs = {pair.candidate.name: pair for pair in bench.pairs()}
    for artifact in bench.artifacts:
        yield _point(run, artifact, pairs.get(artifact.name))


def _point(run: int, artifact: BenchedArtifact, pair: Pair | None) -> HistoryPoint:
    metrics = artifact.metrics
    return HistoryPoint(
        run=run, artifact=artifact.name, against=pair.base.name if pair else None,
        decode_ratio=pair.ratios.decode_tok_s if pair else None,
        prefill_ratio=pair.ratios.prefill_tok_s if pair else None,
        decode_tok_s=_without_samples(metrics.decode_tok_s), peak_rss_mib=_median(metrics.peak_rss_mib),
        held_mib=_median(metrics.held_mib), file_mib=metrics.file_bytes and metrics.file_bytes / MIB,
        perplexity=metrics.perplexity,
    )  # fmt: skip


def _median(summary: Summary | None) -> float | None:
    return None if summary is None else summary.median


def _without_samples(summary: Summary | None) -> Summary | None:
    """The figure without its samples, which a page of many runs has no use for."""
    return summary and summary.model_copy(update={"samples": []})
