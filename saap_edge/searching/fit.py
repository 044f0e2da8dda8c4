"""The best model that keeps a budget, over several axes: quality is sought, and every limit is a constraint."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saap_edge.chain.context import Context
from saap_edge.errors import EXIT_INCONCLUSIVE
from saap_edge.gating import Kind, Limit
from saap_edge.progress import Progress
from saap_edge.recipe import Recipe
from saap_edge.searching.early import hopeless
from saap_edge.searching.opening import make_folder, open_search
from saap_edge.searching.run import (
    Left,
    heldout_nll,
    made_for,
    only_made,
    opened_or_left,
    run_search,
    told_once,
    told_study,
)
from saap_edge.searching.samplers import sampler
from saap_edge.searching.space import Point, Space
from saap_edge.searching.study import SharedStudy, Tried
from saap_edge.worth.fit import (
    SCHEMA,
    by_prediction,
    cost_at,
    exit_code_of,
    judged_at,
    limited_formats,
    patient,
    predicted_figures,
    row_of,
    save_found,
)
from saap_edge.worth.frontier import open_at
from saap_edge.worth.judgeable import check_baseline, check_board

__all__ = ["search_fit"]

OBJECTIVE = "held-out nats a token"
TIMED = (Kind.BOARD, Kind.RATIO)


def search_fit(
    recipe: Recipe,
    over: Mapping[str, Sequence[Any]],
    out: Path,
    listener: Progress,
    *,
    trials: int,
    study: Path,
    seed: int,
) -> dict[str, Any]:
    """Search over axes (`open_search`) for the best model that keeps the recipe's budget: that of least perplexity on
    held-out text.

    Writes fit.json and fit.yaml into `out`, as `worth.fit`. Returns the fit document with `search`, which tells of the
    study. Raises SaapError as `worth.fit`, and for a study that was made for something else.
    """
    check_baseline(recipe.budget)
    opened = open_search(recipe, over, (), listener)
    space, context, known = opened.space, opened.context, opened.known
    recipe = context.recipe
    limited_formats(recipe)
    dense = cost_at(context.spec, recipe.export.formats[0], recipe.export.group, 0)
    check_board(recipe.budget, context.on_target, context.target.title, predicted_figures(context, dense, dense).keys())
    timed = context.on_target and any(limit.kind in TIMED for limit in recipe.budget.limits)
    make_folder(out)
    shared = SharedStudy(
        study, made_for(context, space, {OBJECTIVE: "minimize"}, timed), ["minimize"], space, sampler, seed
    )

    done, before = only_made(listener.stage), told_once(listener)

    def attempt(point: Point) -> Tried:
        ratio, name = space.ratio(point), space.format(point)
        own = opened_or_left(lambda: open_at(patient(space.recipe(point)), ratio, listener.bar, known))
        reason = hopeless(own, name, ratio)
        if reason:
            raise Left(reason)
        verdicts, folder = judged_at(own, out, done, before)
        row = row_of(own, round(100 * ratio, 6), name, verdicts, folder)
        nll = heldout_nll(own, name, folder, out, done)
        limits = own.recipe.budget.limits
        missed = {
            f"{limits[verdict['limit_index']].metric} {verdict['limit']}": _missed(verdict, limits)
            for verdict in row["verdicts"]
        }
        return Tried([nll], row | {"point": point, "heldout_perplexity": math.exp(nll)}, missed)

    run_search(shared, space, trials, attempt, listener)
    return _finish(shared, space, context, out, told_study(shared, space, trials, seed))


def _missed(verdict: dict[str, Any], limits: tuple[Limit, ...]) -> float:
    """By how much a limit is missed, as a share of it; 0 or less where it is met. An undecided limit is not met."""
    limit, value = limits[verdict["limit_index"]], verdict["value"]
    if value is None:
        return 1.0
    below = (limit.min - value) / (abs(limit.min) or 1) if limit.min is not None else -math.inf
    above = (value - limit.max) / (abs(limit.max) or 1) if limit.max is not None else -math.inf
    beyond = max(below, above)
    return min(beyond, 0.0) if verdict["verdict"] == "pass" else max(beyond, 1e-6)


def _finish(study: SharedStudy, space: Space, context: Context, out: Path, told: dict[str, Any]) -> dict[str, Any]:
    best = next(iter(study.best), None)
    found = best and {
        "ratio": best["ratio"], "format": best["format"], "predicted": by_prediction(best), "point": best["point"],
        "heldout_perplexity": best["heldout_perplexity"],
    }  # fmt: skip
    code = exit_code_of(best, study.rows)
    document = {
        "schema": SCHEMA, "exit_code": EXIT_INCONCLUSIVE if best is None and study.running else code,
        "model": context.model_name, "target": context.target.name, "found": found, "tries": told.pop("tried"),
        "search": told,
    }  # fmt: skip
    save_found(document, patient(space.recipe(best["point"])) if best else None, out)
    return document
