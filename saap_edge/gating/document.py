"""Judging a whole document: the gate's own, gate.json, as the stage writes it and the command prints it."""

from __future__ import annotations

from typing import Any

from saap_edge.gating.budget import Budget
from saap_edge.gating.judge import exit_code, judge
from saap_edge.gating.read import Measured, check_baseline
from saap_edge.targets import Target, matches

__all__ = ["gate_document"]

_WORDS = {0: "pass", 1: "fail", 3: "inconclusive"}
# Of machine and conditions, what a reader of verdicts has to know.
_MACHINE, _CONDITIONS = ("cpu", "cores"), ("threads", "prompt_tokens", "decode_tokens", "rounds", "looks", "versions")


def gate_document(
    measured: Measured, budget: Budget, target: Target | None, baseline: Measured | None = None
) -> dict[str, Any]:
    """Judge; returns the gate document.

    Raises SaapError when the baseline does not go with what was measured.
    """
    if baseline is not None:
        check_baseline(measured, baseline)
    bench = measured.bench
    on_target = None if target is None else matches(target, bench["machine"])
    verdicts = judge(bench, budget, on_target, target, None if baseline is None else baseline.bench)
    code = exit_code(verdicts)
    return {
        "exit_code": code, "verdict": _WORDS[code] if verdicts else "no limits given", "model": measured.model,
        "target": target.title if target else None,
        "machine": {name: bench["machine"].get(name) for name in _MACHINE},
        "conditions": {name: bench["conditions"].get(name) for name in _CONDITIONS},
        "verdicts": [verdict.model_dump(mode="json") for verdict in verdicts],
    }  # fmt: skip
