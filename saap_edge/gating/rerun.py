"""The rerun policy: rounds are added while noise leaves a limit undecided, at looks that were planned before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from saap_edge.documents.bench import Bench
from saap_edge.gating.budget import Budget, Kind
from saap_edge.gating.judge import judge

if TYPE_CHECKING:
    from saap_edge.targets import Target

__all__ = ["asked_by", "asks_instructions", "decides", "timed_limits"]

# What more rounds make more certain, besides ratios. Loading and memory are measured by processes of their own.
_BY_ROUNDS = ("decode_tok_s", "prefill_tok_s", "ttft_ms", "itl_p95_ms")


def timed_limits(budget: Budget) -> Budget:
    """The limits that more rounds may decide."""
    limits = [limit for limit in budget.limits if limit.kind is Kind.RATIO or limit.metric in _BY_ROUNDS]
    return Budget(limits=tuple(limits))


def asks_instructions(budget: Budget) -> bool:
    """A limit is on counted instructions."""
    return any(limit.metric.startswith("instructions_per_token") for limit in budget.limits)


def asked_by(budget: Budget | None, target: Target | None) -> dict[str, Any]:
    """What the limits want of `bench_bundles`: its options `decided` and `instructions`, none without a budget."""
    if budget is None:
        return {}
    return {"decided": decides(budget, target), "instructions": asks_instructions(budget)}


def decides(budget: Budget, target: Target | None) -> Callable[[Bench | Mapping[str, Any]], bool]:
    """Whether a bench document leaves nothing open that more rounds could decide: `decided` of `bench.measure`.

    A limit that is inconclusive for another reason (nothing to compare with, another machine than the target) stays
    so however long one measures.
    """
    timed = timed_limits(budget)

    def decided(document: Bench | Mapping[str, Any]) -> bool:
        from saap_edge.targets import matches

        bench = Bench.of(document)
        here = target is not None and matches(target, bench.machine.as_dict())
        return not any(
            verdict.verdict == "inconclusive" and verdict.value is not None and (verdict.kind is Kind.RATIO or here)
            for verdict in judge(bench, timed, here)
        )

    return decided
