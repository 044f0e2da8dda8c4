"""Is pruning worth it, and how much of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saap_edge.api.recipes import recipe_of, with_formats
from saap_edge.api.results import Fit, Frontier
from saap_edge.api.searching import Over, gains_of, search_of
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
    target: str | Path | None = None, ratios: Sequence[float] | None = None, formats: Sequence[str] | None = None,
    rivals: Sequence[str] = RIVALS, method: str | None = None, tokens: int | None = None,
    data: str | Path | None = None, over: Over = None, gains: Sequence[str] | None = None, trials: int | None = None,
    study: str | Path | None = None, seed: int | None = None, out: str | Path, progress: Listener = None,
) -> Frontier:  # fmt: skip
    """Measure quality, speed and bytes, dense and pruned at every quantisation, and find the Pareto front.

    Args:
        ratios: shares of the dense cost to remove, each in (0, 1); RATIOS where absent.
        formats: formats of the dense and the pruned model; the recipe's where absent.
        rivals: further formats of the dense model alone: fewer bits instead of fewer weights.
        over: axes to search (docs/search.md), as ["ratio,format", "effort=quick,normal"], or values by name, an empty
            list for those that it has of itself. Without axes, all of `ratios` and `formats` are made.
        gains: with `over`, what is gained beside quality: of "bytes" (the default), "memory" and "speed".
        trials: with `over`, models that are tried, by all processes that share the study; TRIALS where absent.
        study: with `over`, the journal of the study; OUT/study.journal where absent.
        seed: with `over`, of the search; 0 where absent.
        out: folder to write, which `compile` may share: what was done there is not done again.

    The other arguments are those of `compile`. Raises SaapError for bad input, before anything is run where that can be
    known.

    Examples:
        >>> found = se.frontier("model", recipe="recipe.yaml", ratios=[0.3], rivals=[], out="out")
        >>> [row["name"] for row in found.document["points"]]
        ['dense gguf-q4_0', 'pruned 30% gguf-q4_0']
        >>> [path.name for path in found.files]
        ['frontier.json', 'frontier.html', 'frontier.png']
    """
    listener = progress_of(progress)
    settings = recipe_of(recipe, model=model, target=target, method=method, tokens=tokens, data=data)
    settings = with_formats(settings, formats, "--format") if formats else settings
    chosen = tuple(sorted(set(ratios or ())))
    for value in chosen:
        recipe_of(settings, ratio=value)  # refuses what is no ratio
    if rivals:
        with_formats(settings, list(rivals), "--rival")
    place, search = Path(out), search_of(over, trials, study, seed, Path(out))
    wanted = gains_of(gains, search is not None)
    from saap_edge.report.frontier import write_frontier

    if search is None:
        from saap_edge.worth.frontier import frontier as measure

        document = measure(
            settings, chosen or RATIOS, tuple(rivals), place, listener.bar, listener.stage, told_ahead(listener)
        )  # fmt: skip
    else:
        from saap_edge.searching.frontier import search_frontier

        axes, options = search
        document = search_frontier(settings, axes, chosen, wanted, tuple(rivals), place, listener, **options)
    return Frontier(document, tuple(write_frontier(document, place)))


def fit(
    model: str | Path | None = None, *, budget: Budget | Mapping[str, Any] | str | Path,
    recipe: Recipe | Mapping[str, Any] | str | Path | None = None, target: str | Path | None = None,
    formats: Sequence[str] | None = None, method: str | None = None, tokens: int | None = None,
    data: str | Path | None = None, over: Over = None, trials: int | None = None, study: str | Path | None = None,
    seed: int | None = None, out: str | Path, progress: Listener = None,
) -> Fit:  # fmt: skip
    """Find the least pruning that meets a budget: predictions say where to begin, compiled models decide.

    With `over`, find the best model that meets it, of least perplexity on held-out text, over several axes.

    Args:
        budget: limits (docs/gate.md): a YAML file, a document or a `Budget`.
        formats: formats that may meet them; the recipe's where absent.
        over: axes to search, as for `frontier`; so are the next three.
        trials: models to make.
        study: the journal of the search.
        seed: of the choice of models.
        out: folder to write, which `compile` may share.

    The other arguments are those of `compile`. Raises SaapError for bad input, and for a limit that can never be judged
    here.

    Examples:
        >>> found = se.fit("model", recipe="recipe.yaml", budget="budget.yaml", out="out")
        >>> found.document["found"]  # the dense model is small enough already
        {'ratio': 0, 'format': 'gguf-q4_0', 'predicted': False}
    """
    listener = progress_of(progress)
    settings = recipe_of(recipe, model=model, target=target, method=method, tokens=tokens, data=data, budget=budget)
    settings = with_formats(settings, formats, "--format") if formats else settings
    place, search = Path(out), search_of(over, trials, study, seed, Path(out))
    if search is None:
        from saap_edge.worth.fit import fit as least

        document = least(settings, place, listener.bar, listener.stage, told_ahead(listener))
    else:
        from saap_edge.searching.fit import search_fit

        axes, options = search
        document = search_fit(settings, axes, place, listener, **options)
    found = document["found"]
    return Fit(document, place / "fit.yaml" if found and found["ratio"] else None)
