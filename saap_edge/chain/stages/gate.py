"""Verdicts on the recipe's limits: gate.json. A board can run this stage, too: it needs neither torch nor a context."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saap_edge.cache import Stage
from saap_edge.chain.code import code_hash
from saap_edge.chain.rule import Inputs, Rule
from saap_edge.gating.document import gate_document
from saap_edge.gating.read import read_measured

if TYPE_CHECKING:
    from saap_edge.chain.context import Context
    from saap_edge.gating import Budget
    from saap_edge.targets import Target

__all__ = ["RULE", "gate_stage"]


def gate_stage(budget: Budget, target: Target) -> Stage:
    """The stage that judges the folder of the bench stage."""
    run, code = partial(_judge, budget, target), code_hash(__name__)
    return Stage("gate", ("bench",), (), _settings(budget, target), run, code)


def _settings(budget: Budget, target: Target) -> dict[str, Any]:
    """What decides the verdicts, besides the figures."""
    return {"budget": budget.model_dump(mode="json"), "target": target.identity}


def _judge(budget: Budget, target: Target, inputs: Inputs, out: Path) -> None:
    gate_document(read_measured(inputs["bench"]), budget, target).write(out / "gate.json")


def _gate(context: Context, inputs: Inputs, out: Path) -> None:
    _judge(context.recipe.budget, context.target, inputs, out)


RULE = Rule("gate", ("bench",), _gate, settings=lambda context: _settings(context.recipe.budget, context.target))
