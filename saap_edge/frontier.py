"""Is pruning worth it here? Quality against speed and bytes, dense and pruned at every quantisation.

Every artifact is measured beside the same one, the anchor (the dense model in the board's own quantisation), in
alternating rounds: speeds of artifacts that were never loaded together are then ratios of one thing. Each measurement
is a stage of its own, so that a killed run goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saap_edge.errors import SaapError
from saap_edge.pipeline import Stage, StageResult, run_stage
from saap_edge.recipe import Recipe
from saap_edge.run import run_stages
from saap_edge.stages import ORDER, Bar, Job, read_json

__all__ = ["SCHEMA", "frontier", "mark_front", "with_ratio"]

SCHEMA = 1
CHAIN = ORDER[: ORDER.index("verify") + 1]


@dataclass(frozen=True)
class _Point:
    """An artifact to measure: its export folder (dense where `ratio` is 0), the folder that verified it."""

    ratio: float
    removed: float
    format: str
    folder: Path
    dense: Path
    job: Job

    @property
    def role(self) -> str:
        return "pruned" if self.ratio else "dense"

    @property
    def name(self) -> str:
        return f"pruned {self.ratio:.0%} {self.format}" if self.ratio else f"dense {self.format}"


def with_ratio(recipe: Recipe, ratio: float) -> Recipe:
    """The recipe at another pruning ratio."""
    return recipe.model_copy(update={"prune": recipe.prune.model_copy(update={"ratio": ratio})})


def frontier(
    recipe: Recipe, ratios: tuple[float, ...], rivals: tuple[str, ...], out: Path, bar: Bar,
    done: Callable[[StageResult], None],
) -> dict[str, Any]:  # fmt: skip
    """Compile at every ratio, measure every artifact; returns the frontier document (schema 1).

    Args:
        ratios: shares of the dense cost to remove, each in (0, 1).
        rivals: formats of the dense model beside the recipe's own: fewer bits instead of fewer weights.
        out: the run's folder, shared with `saap-edge compile`: what it has done is not done again.
        done: called after every stage.

    Raises SaapError for whatever the stages refuse, before anything runs where that can be known.
    """
    jobs = [Job(with_ratio(recipe, ratio), None, bar) for ratio in ratios]
    anchor = f"gguf-{jobs[0].target.quantisation['gguf']}"
    if anchor not in recipe.export.formats:
        anchor = recipe.export.formats[0]
    points = []
    for job in jobs:
        folders = {result.name: result.folder for result in run_stages(job, CHAIN, {}, out, None, done).results}
        if not points:
            points += [_Point(0, 0, name, folders["dense"], folders["dense"], job) for name in recipe.export.formats]
            points += _rival_points(recipe, rivals, folders["dense"], out, bar, done)
        removed = float(read_json(folders["plan"] / "plan.json")["achieved_ratio"])
        points += [
            _Point(job.recipe.prune.ratio, removed, name, folders["export"], folders["dense"], job)
            for name in recipe.export.formats
        ]
    measured = []
    for point in points:
        result = _measured(point, anchor, out)
        done(result)
        measured.append(read_json(result.folder / "point.json"))
    return _document(jobs[0], anchor, points, measured)


def _rival_points(
    recipe: Recipe, rivals: tuple[str, ...], dense: Path, out: Path, bar: Bar, done: Callable[[StageResult], None]
) -> Iterator[_Point]:
    """The dense model in formats that the pruned one is not wanted in, checked against torch like all others."""
    wanted = tuple(name for name in rivals if name not in recipe.export.formats)
    if not wanted:
        return
    formats = recipe.export.model_copy(update={"formats": wanted})
    job = Job(recipe.model_copy(update={"export": formats}), None, bar, tune=True)
    results = run_stages(job, ("dense",), {}, out, None, done).results
    folder = results[-1].folder
    check = Stage("rivals", ("dense",), ("model", "test"), {}, lambda inputs, path: _verify(job, inputs["dense"], path))
    done(run_stage(check, {"dense": folder}, job.outside(("model", "test")), out / "stages", _record(job)))
    yield from (_Point(0, 0, name, folder, dense, job) for name in wanted)


def _verify(job: Job, artifacts: Path, out: Path) -> None:
    from saap_edge.evaluate.parity import require
    from saap_edge.evaluate.verify import verify_folder

    text = Path(job.recipe.data.test).read_text(encoding="utf-8")
    with job.bar("verify: rivals", len(job.recipe.export.formats)) as advance:
        require(verify_folder(artifacts, job.model, text, job.threads, lambda: advance(1)))


def _record(job: Job) -> dict[str, Any]:
    return job.recipe.model_dump(mode="json")


def _measured(point: _Point, anchor: str, out: Path) -> StageResult:
    """Measure one artifact beside the anchor, or find that it has been measured."""
    from saap_edge.bench.artifacts import measure_beside

    def run(inputs: Any, path: Path) -> None:
        with point.job.bar(f"measure: {point.name}", 1) as advance:
            conditions = point.job.conditions()
            document = measure_beside(
                inputs["dense"], anchor, inputs["artifact"], point.format, conditions, lambda: advance(0)
            )
        (path / "point.json").write_text(_json(document), encoding="utf-8")

    settings = point.job.stage("bench").settings | {"anchor": anchor, "format": point.format}
    stage = Stage("point", ("dense", "artifact"), ("test",), settings, run)
    folders = {"dense": point.dense, "artifact": point.folder}
    return run_stage(stage, folders, point.job.outside(("test",)), out / "stages", _record(point.job))


def _document(job: Job, anchor: str, points: list[_Point], measured: list[dict[str, Any]]) -> dict[str, Any]:
    """The frontier document: a row a point, and which of them no other beats."""
    rows = [_row(job, point, document) for point, document in zip(points, measured, strict=True)]
    first = measured[0]
    return {
        "schema": SCHEMA, "model": job.model_name, "target": job.target.name, "on_target": job.on_target,
        "anchor": f"dense {anchor}", "machine": first["machine"], "conditions": first["conditions"],
        "points": mark_front(rows),
    }  # fmt: skip


def _row(job: Job, point: _Point, document: dict[str, Any]) -> dict[str, Any]:
    """One artifact. `speed` is its decode rate over the anchor's, `predicted` the target's where that is elsewhere."""
    [metrics] = [entry["metrics"] for entry in document["artifacts"] if entry["role"] == "candidate"]
    [comparison] = document["comparisons"]
    return {
        "name": point.name, "role": point.role, "ratio": point.ratio, "removed": point.removed, "format": point.format,
        "speed": comparison["ratios"]["decode_tok_s"], "ideal_speed": comparison["ideal_decode_ratio"],
        "decode_tok_s": metrics["decode_tok_s"]["median"], "perplexity": metrics["perplexity"],
        "predicted_decode_tok_s": None if job.on_target else _predicted(job, metrics, point.format),
        **{name: metrics[name] for name in ("file_bytes", "bytes_per_token", "kv_bytes_per_token", "parameters")},
        "peak_rss_mib": metrics["peak_rss_mib"]["median"],
    }  # fmt: skip


def mark_front(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add `front`: the axes ("speed", "bytes") on which no other row is at least as good in both and better in one.

    Only rows with a perplexity compete: what was not measured proves nothing.
    """
    gains: dict[str, Callable[[dict[str, Any]], float]] = {
        "speed": lambda row: float(row["speed"]["ratio"]), "bytes": lambda row: -float(row["file_bytes"]),
    }  # fmt: skip
    known = [row for row in rows if row["perplexity"] is not None]

    def beaten(row: dict[str, Any], gain: Callable[[dict[str, Any]], float]) -> bool:
        here = (gain(row), -row["perplexity"])
        others = [(gain(other), -other["perplexity"]) for other in known]
        return any(other != here and other[0] >= here[0] and other[1] >= here[1] for other in others)

    return [
        row | {"front": [axis for axis, gain in gains.items() if row in known and not beaten(row, gain)]}
        for row in rows
    ]
