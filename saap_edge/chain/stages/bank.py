"""The bank: every sublayer's order of removal, and its repaired weights at every width. One bank serves all ratios."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saap_edge.chain.rule import Inputs, Rule
from saap_edge.chain.space import grids_of, space_of
from saap_edge.chain.stages.score import dense_model, score_settings
from saap_edge.chain.texts import calibration

if TYPE_CHECKING:
    from saap_edge.chain.context import Context

__all__ = ["RULE"]

_OFFERED = ("off_grid", "only", "protect", "minimum", "query_slots", "depth")  # they say which widths there are


def _settings(context: Context) -> dict[str, Any]:
    prune = context.recipe.prune.model_dump(mode="json")
    grids = grids_of(context.spec, context.recipe, context.target)
    return score_settings(context) | {name: prune[name] for name in _OFFERED} | {"grids": grids}


def _bank(context: Context, inputs: Inputs, out: Path) -> None:
    from saap_edge.pruning.bank import build_bank
    from saap_edge.pruning.score import load_scores

    model = dense_model(context)
    # Plans of all methods take this bank, so that it has the widths of those whose layers differ, too.
    why = context.spec.family.uniform_only
    space = replace(space_of(context.spec, context.recipe, context.target), uniform_only=why)
    texts = calibration(context, inputs, context.recipe.score.samples)
    with context.bar("bank: layers", len(context.spec.layers)) as advance:
        scores, precision = load_scores(inputs["score"]), context.recipe.score.precision
        build_bank(model, scores, space, texts, out, lambda: advance(1), precision)


RULE = Rule("bank", ("score",), _bank, reads=("model",), settings=_settings, learns=True)
