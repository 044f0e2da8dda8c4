"""A sweep for people: a table of its recipes, what failed, and what was shared."""

from __future__ import annotations

from collections import Counter

from rich.console import RenderableType
from rich.markup import escape

from saap_edge.documents.sweep import Sweep, SweepArtifact, SweepRecipe
from saap_edge.report.tables import new_table, number
from saap_edge.report.terminal import VERDICT_COLOURS

__all__ = ["render_sweep"]


def render_sweep(sweep: Sweep) -> list[RenderableType]:
    """The recipes with a row for each artifact, lines on what failed, and a line on the stages."""
    elsewhere = any(artifact.predicted_decode_tok_s for recipe in sweep.recipes for artifact in recipe.artifacts)
    columns = ["recipe", "removed", "format", "file MiB", "tok/s", "speed [95 %]"]
    columns += ["there, predicted"] if elsewhere else []
    rows = new_table(f"{len(sweep.recipes)} recipes", *columns, "perplexity", "verdict")
    for column in rows.columns:
        column.no_wrap = True
    for recipe in sweep.recipes:
        for index, artifact in enumerate(recipe.artifacts or [SweepArtifact(format="-")]):
            head = (recipe.name, "" if recipe.removed is None else f"{recipe.removed:.1%}") if not index else ("", "")
            cells = [*head, artifact.format, *_figures(artifact, elsewhere)]
            rows.add_row(*map(escape, cells), _verdict(recipe) if not index else "")
    parts: list[RenderableType] = [rows]
    parts += [
        f"[bold red]failed:[/] {escape(stage.key)}: {escape(stage.reason or '')} "
        f"(recipes {escape(', '.join(stage.recipes))})"
        for stage in sweep.stages
        if stage.became == "failed"
    ]
    return [*parts, f"  {escape(_stages(sweep))}"]


def _figures(artifact: SweepArtifact, elsewhere: bool) -> list[str]:
    size, ratio, there = artifact.file_bytes, artifact.speedup, artifact.predicted_decode_tok_s
    more = artifact.perplexity_increase_pct
    return [
        "-" if size is None else f"{size / 2**20:.2f}", number(artifact.decode_tok_s, 1),
        "-" if ratio is None else f"{ratio.ratio:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]",
        *(["-" if there is None else f"{there.value:.3g} [{there.low:.3g}, {there.high:.3g}]"] if elsewhere else []),
        number(artifact.perplexity) + ("" if more is None else f" (+{more:.1f} %)".replace("+-", "-")),
    ]  # fmt: skip


def _verdict(recipe: SweepRecipe) -> str:
    if recipe.reason is not None:
        return "[bold red]failed[/]"
    word = recipe.verdict or "not made"
    return f"[{VERDICT_COLOURS[word]}]{word}[/]" if word in VERDICT_COLOURS else escape(word)


def _stages(sweep: Sweep) -> str:
    """How many stages there were, and how many of them several recipes share."""
    counts = Counter(stage.became for stage in sweep.stages)
    told = ", ".join(f"{count} {word}" for word, count in counts.items())
    shared = Counter(stage.stage for stage in sweep.stages if len(stage.recipes) > 1)
    names = ", ".join(f"{count} {name}" if count > 1 else name for name, count in shared.items())
    return f"stages: {told}" + (f"; shared by several recipes: {names}" if names else "")
