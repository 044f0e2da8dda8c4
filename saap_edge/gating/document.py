"""The gate document, gate.json, from measurements and a budget: the stage writes it, the command prints it."""

from __future__ import annotations

from saap_edge.documents.gate import Gate, GateConditions, GateMachine
from saap_edge.gating.budget import Budget
from saap_edge.gating.judge import exit_code, judge
from saap_edge.gating.read import Measured, check_baseline
from saap_edge.targets import Target, matches

__all__ = ["gate_document"]

_WORDS = {0: "pass", 1: "fail", 3: "inconclusive"}


def gate_document(
    measured: Measured, budget: Budget, target: Target | None, baseline: Measured | None = None
) -> Gate:  # fmt: skip
    """Judge every limit of a budget and return the gate document.

    Args:
        measured: what was measured.
        budget: the limits.
        target: the board that they are for; None: none is named, and limits on figures of a board stay open.
        baseline: what was measured of another run, for changes in percent.

    Raises SaapError when the baseline does not go with what was measured.
    """
    if baseline is not None:
        check_baseline(measured, baseline)
    machine, conditions = measured.bench.machine, measured.bench.conditions
    on_target = None if target is None else matches(target, machine.as_dict())
    verdicts = judge(measured.bench, budget, on_target, target, None if baseline is None else baseline.bench)
    code = exit_code(verdicts)
    return Gate(
        exit_code=code, verdict=_WORDS[code] if verdicts else "no limits given", model=measured.model,
        target=target.title if target else None, machine=GateMachine(cpu=machine.cpu, cores=machine.cores),
        conditions=GateConditions(
            threads=conditions.threads, prompt_tokens=conditions.prompt_tokens,
            decode_tokens=conditions.decode_tokens, rounds=conditions.rounds,
            looks=conditions.looks or None, versions=conditions.versions or None, kv=conditions.kv,
        ),
        verdicts=verdicts,
    )  # fmt: skip
