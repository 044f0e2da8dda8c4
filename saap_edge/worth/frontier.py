"""Is pruning worth it here? Quality against speed and bytes, dense and pruned at every quantisation.

Every artifact is measured by turns with the same anchor, the dense model in the board's own quantisation. The shared
anchor makes separate measurements comparable. Each measurement is a stage of its own, so that a killed run goes on
where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from saap_edge.cache import StageResult, run_stage
from saap_edge.chain.chains import COMPILE, DENSE, ORDER
from saap_edge.chain.context import Context, Known, open_context
from saap_edge.chain.run import Before, run_stages
from saap_edge.chain.stages.bench import point as point_rule
from saap_edge.documents.bench import Bench
from saap_edge.documents.plan import load_plan
from saap_edge.measuring.pareto import on_front
from saap_edge.prediction.predict import predict_benched
from saap_edge.progress import Bar
from saap_edge.recipe import Recipe

__all__ = [
    "CHAIN", "SCHEMA", "Point", "anchor_of", "dense_folder", "frontier", "frontier_document", "mark_front", "measured",
    "open_at", "with_formats", "with_ratio",
]  # fmt: skip

SCHEMA = 1
CHAIN = ORDER[: ORDER.index("verify") + 1]


@dataclass(frozen=True)
class Point:
    """An artifact to measure, in an export folder. `ratio` is what was asked for (0: dense), `removed` was achieved.
    `label` says what else sets it apart."""

    ratio: float
    removed: float
    format: str
    folder: Path
    context: Context
    label: str = ""

    @property
    def name(self) -> str:
        kind = f"pruned {self.ratio:.0%} {self.format}" if self.ratio else f"dense {self.format}"
        return f"{kind} {self.label}" if self.label else kind


def with_ratio(recipe: Recipe, ratio: float) -> Recipe:
    """The recipe at another pruning ratio."""
    return recipe.model_copy(update={"prune": recipe.prune.model_copy(update={"ratio": ratio})})


def open_at(recipe: Recipe, ratio: float, bar: Bar, known: Known | None = None) -> Context:
    """The context of the recipe at a ratio; at 0 that of its dense model. Raises SaapError as `open_context`."""
    if not ratio:
        return open_context(recipe, None, bar, tune=True, known=known)
    return open_context(with_ratio(recipe, ratio), None, bar, known=known)


def with_formats(recipe: Recipe, formats: tuple[str, ...]) -> Recipe:
    """The recipe with other formats to export."""
    return recipe.model_copy(update={"export": recipe.export.model_copy(update={"formats": formats})})


def frontier(
    recipe: Recipe, ratios: tuple[float, ...], rivals: tuple[str, ...], out: Path, bar: Bar,
    done: Callable[[StageResult], None], before: Before = lambda context, steps: None,
) -> dict[str, Any]:  # fmt: skip
    """Compile at every ratio, measure every artifact, and return the frontier document (schema 1).

    Args:
        recipe: the recipe; its ratio does not matter.
        ratios: shares of the dense cost to remove, each in (0, 1).
        rivals: further formats of the dense model alone: fewer bits instead of fewer weights.
        out: the run's folder, which `saap-edge compile` may share: its stages are not run again.
        bar: shows progress.
        done: called after every stage.
        before: called with what each compilation is about to do.

    Raises SaapError for all that the stages refuse, before anything runs where that can be known.
    """
    wanted = tuple(name for name in rivals if name not in recipe.export.formats)
    with bar("checking the recipe and the model", None):
        contexts = [open_context(with_ratio(recipe, ratio), None, bar) for ratio in ratios]
        rival = open_context(with_formats(recipe, wanted), None, bar, tune=True) if wanted else None
    anchor_format = anchor_of(contexts[0])
    points: list[Point] = []
    for context in contexts:
        results = run_stages(context, COMPILE, CHAIN, out=out, done=done, before=before).results
        folders = {result.name: result.folder for result in results}
        if not points:
            anchor = folders["dense"], anchor_format
            points += [Point(0, 0, name, folders["dense"], context) for name in recipe.export.formats]
            if rival:
                folder = dense_folder(rival, out, done)
                points += [Point(0, 0, name, folder, rival) for name in wanted]
        removed = load_plan(folders["plan"]).achieved_ratio
        points += [
            Point(context.recipe.prune.ratio, removed, name, folders["export"], context)
            for name in recipe.export.formats
        ]
    return frontier_document(
        contexts[0], anchor_format, points, [measured(point, anchor, out, done) for point in points]
    )


def anchor_of(context: Context) -> str:
    """The format of the dense model that all others are measured beside: the board's own, if it is exported."""
    own, formats = f"gguf-{context.target.quantisation['gguf']}", context.recipe.export.formats
    return own if own in formats else formats[0]


def dense_folder(context: Context, out: Path, done: Callable[[StageResult], None]) -> Path:
    """The export folder of the dense model in the recipe's formats, verified against torch."""
    results = run_stages(context, DENSE, ("dense", "densecheck"), out=out, done=done).results
    return next(result.folder for result in results if result.name == "dense")


def measured(point: Point, anchor: tuple[Path, str], out: Path, done: Callable[[StageResult], None]) -> Bench:
    """Measure one artifact by turns with the anchor, or find that it was measured before."""
    context = point.context
    stage = point_rule(anchor[1], point.format).stage(context)
    folders, record = {"anchor": anchor[0], "artifact": point.folder}, context.recipe.model_dump(mode="json")
    with context.bar(f"measuring {point.name}", None):
        result = run_stage(stage, folders, context.outside(stage.reads), out / "stages", record)
    done(result)
    return Bench.read(result.folder / "point.json")


def frontier_document(
    context: Context, anchor: str, points: list[Point], documents: list[Bench]
) -> dict[str, Any]:  # fmt: skip
    """The frontier document: a row for each artifact, marked if no other beats it. `documents` are their figures."""
    rows = [_row(context, point, document) for point, document in zip(points, documents, strict=True)]
    first = documents[0]
    return {
        "schema": SCHEMA, "model": context.model_name, "target": context.target.name, "on_target": context.on_target,
        "anchor": f"dense {anchor}", "machine": first.machine.as_dict(), "conditions": first.conditions.as_dict(),
        "points": mark_front(rows),
    }  # fmt: skip


def _row(context: Context, point: Point, document: Bench) -> dict[str, Any]:
    """The row of one artifact. `speed` is its decode rate over the anchor's. Where the target is another machine, the
    rate on it is predicted."""
    [artifact] = [entry for entry in document.artifacts if entry.role == "candidate"]
    [comparison], metrics = document.comparisons, artifact.metrics
    there = None if context.on_target else predict_benched(artifact, document.conditions, context.target).decode_tok_s
    return {
        "name": point.name, "role": "pruned" if point.ratio else "dense", "ratio": point.ratio,
        "removed": point.removed, "format": point.format,
        "speed": comparison.ratios.decode_tok_s.as_dict(), "ideal_speed": comparison.ideal_decode_ratio,
        "decode_tok_s": metrics.timed("decode_tok_s").median, "perplexity": metrics.perplexity,
        "predicted_decode_tok_s": there and asdict(there),
        **{name: metrics[name] for name in ("file_bytes", "bytes_per_token", "kv_bytes_per_token", "parameters")},
        "peak_rss_mib": metrics.timed("peak_rss_mib").median,
    }  # fmt: skip


def mark_front(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add `front` to every row: the axes ("speed", "bytes") on which no other row beats it."""
    losses = [row["perplexity"] for row in rows]
    marks = {
        "speed": on_front([row["speed"]["ratio"] for row in rows], losses),
        "bytes": on_front([-row["file_bytes"] for row in rows], losses),
    }
    return [row | {"front": [axis for axis in marks if marks[axis][index]]} for index, row in enumerate(rows)]
