"""The plan, widths of every layer for a ratio: plan.json, and the values by which structures leave."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saap_edge.chain.amounts import SEARCH_WINDOWS
from saap_edge.chain.rule import Inputs, Rule
from saap_edge.chain.space import space_of, target_settings
from saap_edge.chain.stages.score import batches_of, dense_model, score_settings, scores_of
from saap_edge.chain.texts import HELDOUT_WINDOWS, calibration, windows
from saap_edge.files import file_hash
from saap_edge.registry import source_file

if TYPE_CHECKING:
    from saap_edge.chain.context import Context

__all__ = ["RULE", "planner_of"]


def _settings(context: Context) -> dict[str, Any]:
    recipe = context.recipe
    given = {"plan": context.plan.model_dump(mode="json")} if context.plan else {}
    prune = recipe.prune.model_dump(mode="json")
    target = target_settings(context.spec, recipe, context.target)
    return given | prune | score_settings(context) | {"seed": recipe.seed} | target | _outside(recipe.prune.method)


def _outside(method: str) -> dict[str, Any]:
    """The hash of an outside order's file, so that its plans are made again when the file changes."""
    from saap_edge.pruning.settings import OUTSIDE_ORDERS

    if method not in OUTSIDE_ORDERS:
        return {}
    from saap_edge.pruning.orders import order_of

    file = source_file(order_of(method).values)
    return {"outside": None if file is None else file_hash(file)}


def _plan(context: Context, inputs: Inputs, out: Path) -> None:
    from saap_edge.pruning.plan import save_plan
    from saap_edge.pruning.planner import save_values

    settings = context.recipe.prune
    with tempfile.TemporaryDirectory() as scratch:
        planner = planner_of(context, inputs, Path(scratch))
        if context.plan is None:
            with context.bar("plan", planner.work(settings.method)) as advance:
                plan, values = planner.plan(settings.method, settings.ratio, advance)
        else:
            plan, values = context.plan, planner.values(context.plan.order)
    save_plan(plan, out / "plan.json")
    save_values(values, out)


def planner_of(context: Context, inputs: Inputs, scratch: Path) -> Any:
    """The recipe's planner over what the stages score and bank left; `scratch` is for banks of further rounds."""
    from saap_edge.pruning.bank import Bank, build_bank
    from saap_edge.pruning.planner import Planner
    from saap_edge.pruning.score import load_scores
    from saap_edge.pruning.settings import EFFORTS

    settings, samples, precision = context.recipe.prune, context.recipe.score.samples, context.recipe.score.precision
    effort = EFFORTS[settings.effort]
    if settings.evaluations is not None:
        effort = replace(effort, evaluations=settings.evaluations)
    model = dense_model(context)
    space = space_of(context.spec, context.recipe, context.target)
    texts = calibration(context, inputs, max(samples + SEARCH_WINDOWS, settings.samples))

    def rescore() -> tuple[Any, Any]:
        scores = scores_of(context, inputs, model, batches_of(context, inputs))
        return scores, build_bank(model, scores, space, texts[:samples], scratch, precision=precision)

    return Planner(
        model=model, scores=load_scores(inputs["score"]), bank=Bank(inputs["bank"]), space=space,
        calibration=texts[: settings.samples], search=texts[: samples + SEARCH_WINDOWS][-SEARCH_WINDOWS:],
        heldout=windows(context, "heldout", HELDOUT_WINDOWS), ranking=settings.ranking,
        effort=effort, seed=context.recipe.seed,
        mix=settings.mix if settings.repair else None, bias=settings.bias, rounds=settings.rounds, rescore=rescore,
        precision=precision, checkpointing=context.recipe.score.checkpointing,
    )  # fmt: skip


RULE = Rule("plan", ("score", "bank"), _plan, reads=("model", "heldout"), settings=_settings, learns=True)
