"""The rerun policy: rounds are added while noise leaves a limit undecided. The looks are planned beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from saap_edge.documents.bench import Bench
from saap_edge.gating.budget import Budget, Kind
from saap_edge.gating.judge import judge

if TYPE_CHECKING:
    from saap_edge.targets import Target

__all__ = ["asked_by", "asks_instructions", "decides", "timed_limits"]

# Besides ratios, more rounds make these figures more certain. Loading and memory are measured by other processes.
_BY_ROUNDS = ("decode_tok_s", "prefill_tok_s", "ttft_ms", "itl_p95_ms")


def timed_limits(budget: Budget) -> Budget:
    """The limits that more rounds may decide.

    >>> limits = {"decode_tok_s": {"min": 8}, "file_mib": {"max": 100}}
    >>> [limit.metric for limit in timed_limits(Budget.model_validate({"limits": limits})).limits]
    ['decode_tok_s']
    """
    limits = [limit for limit in budget.limits if limit.kind is Kind.RATIO or limit.metric in _BY_ROUNDS]
    return Budget(limits=tuple(limits))


def asks_instructions(budget: Budget) -> bool:
    """Whether a limit is on counted instructions, whose counting takes long."""
    return any(limit.metric.startswith("instructions_per_token") for limit in budget.limits)


def asked_by(budget: Budget | None, target: Target | None) -> dict[str, Any]:
    """The options `decided` and `instructions` of `bench_bundles` for a budget; none without a budget."""
    if budget is None:
        return {}
    return {"decided": decides(budget, target), "instructions": asks_instructions(budget)}


def decides(budget: Budget, target: Target | None) -> Callable[[Bench | Mapping[str, Any]], bool]:
    """A function that says whether a bench document leaves nothing open that more rounds could decide.

    It is the argument `decided` of `measuring.measure`. A limit that is inconclusive for another reason (nothing to
    compare with, another machine than the target) does not count: it would stay so.
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
