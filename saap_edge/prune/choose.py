"""Choosing a plan: candidates are cut, repaired and judged on held-out text, and the best is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from saap_edge.evaluate.perplexity import perplexity
from saap_edge.prune.plan import Candidate, Plan
from saap_edge.prune.repair import repair
from saap_edge.prune.score import Scores
from saap_edge.prune.search import METHODS, kept_structures, plan_from_scores
from saap_edge.prune.surgery import cut

__all__ = ["candidate_plans", "choose_plan"]


def candidate_plans(scores: Scores, method: str, ratio: float, fluctuation_weight: float) -> list[Plan]:
    """The plans `method` asks for: its own and always the uniform rival; `auto` means every method.

    Raises SaapError when the ratio cannot be reached.
    """
    wanted = METHODS if method == "auto" else tuple(dict.fromkeys((method, "uniform")))
    return [plan_from_scores(scores, name, ratio, fluctuation_weight) for name in wanted]


def choose_plan(
    dense: Any,
    scores: Scores,
    plans: list[Plan],
    method: str,
    calibration: torch.Tensor,
    heldout: torch.Tensor,
    progress: Callable[[str], None] = lambda name: None,
) -> Plan:
    """Judge every plan after cut and repair; return the winner with all candidates' figures in it.

    `calibration` and `heldout` are token ids [n, window]. With `auto` the lowest held-out perplexity wins; a method
    that was asked for by name is kept, and its rival's figure stands beside it.
    """
    judged: list[float] = []
    for plan in plans:
        kept = kept_structures(scores, plan)
        pruned = cut(dense, kept)
        repair(dense, pruned, kept, calibration)
        judged.append(perplexity(pruned, heldout).value)
        progress(plan.method)
    best = judged.index(min(judged)) if method == "auto" else [plan.method for plan in plans].index(method)
    candidates = [
        Candidate(
            method=plan.method, achieved_ratio=plan.achieved_ratio, heldout_perplexity=value, uniform=plan.uniform,
            chosen=index == best,
        )
        for index, (plan, value) in enumerate(zip(plans, judged, strict=True))
    ]  # fmt: skip
    return plans[best].model_copy(update={"candidates": candidates})
