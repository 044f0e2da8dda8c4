"""Is pruning worth it, and how much of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saap_edge.api.recipes import recipe_of, with_formats
from saap_edge.api.results import Fit, Frontier
from saap_edge.api.stages import told_ahead
from saap_edge.progress import Listener, progress_of

if TYPE_CHECKING:
    from saap_edge.gating import Budget
    from saap_edge.recipe import Recipe

__all__ = ["RATIOS", "RIVALS", "fit", "frontier"]

RATIOS = (0.2, 0.35, 0.5)
RIVALS = ("gguf-q4_k_m", "gguf-q3_k_m", "gguf-q2_k")


def frontier(
    model: str | Path | None = None, *, recipe: Recipe | Mapping[str, Any] | str | Path | None = None,
    target: str | Path | None = None, ratios: Sequence[float] = RATIOS, formats: Sequence[str] | None = None,
    rivals: Sequence[str] = RIVALS, method: str | None = None, tokens: int | None = None,
    data: str | Path | None = None, out: str | Path, progress: Listener = None,
) -> Frontier:  # fmt: skip
    """Dense and pruned at every quantisation: quality, speed, bytes, and the Pareto front.

    Args:
        ratios: shares of the dense cost to remove, each in (0, 1).
        formats: of the dense and the pruned model alike; `rivals`: of the dense one alone, fewer bits instead of fewer
            weights.

    Raises SaapError for bad input, before anything is run where that can be known.
    """
    listener = progress_of(progress)
    settings = recipe_of(recipe, model=model, target=target, method=method, tokens=tokens, data=data)
    settings = with_formats(settings, formats, "--format") if formats else settings
    chosen = tuple(sorted(set(ratios)))
    for value in chosen:
        recipe_of(settings, ratio=value)  # refuses what is no ratio
    if rivals:
        with_formats(settings, list(rivals), "--rival")
    from saap_edge.report.frontier import write_frontier
    from saap_edge.worth.frontier import frontier as measure

    document = measure(
        settings, chosen, tuple(rivals), Path(out), listener.bar, listener.stage,
        told_ahead(listener),
    )  # fmt: skip
    return Frontier(document, tuple(write_frontier(document, Path(out))))


def fit(
    model: str | Path | None = None, *, budget: Budget | Mapping[str, Any] | str | Path,
    recipe: Recipe | Mapping[str, Any] | str | Path | None = None, target: str | Path | None = None,
    formats: Sequence[str] | None = None, method: str | None = None, tokens: int | None = None,
    data: str | Path | None = None, out: str | Path, progress: Listener = None,
) -> Fit:  # fmt: skip
    """The least pruning that meets a budget: from predictions first, then measured.

    Raises SaapError for bad input, and for a limit that can never be judged here.
    """
    listener = progress_of(progress)
    settings = recipe_of(recipe, model=model, target=target, method=method, tokens=tokens, data=data, budget=budget)
    settings = with_formats(settings, formats, "--format") if formats else settings
    from saap_edge.worth.fit import fit as search

    document = search(
        settings, Path(out), listener.bar, listener.stage,
        told_ahead(listener),
    )  # fmt: skip
    found = document["found"]
    return Fit(document, Path(out) / "fit.yaml" if found and found["ratio"] else None)
