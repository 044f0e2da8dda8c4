"""Refusing limits that a fit can never judge, before it compiles: they would look like too little pruning."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from saap_edge.errors import SaapError
from saap_edge.gating import Budget, Kind, Limit
from saap_edge.measuring.energy import find_meter
from saap_edge.measuring.instructions import find_counter

__all__ = ["check_baseline", "check_board"]

# Metrics that this machine may be unable to measure: how to find out, and why it cannot.
_HERE: dict[str, tuple[Callable[[], bool], str]] = {
    "energy_j_per_token": (lambda: find_meter() is not None, "this machine has no meter of energy that may be read"),
    "instructions_per_token": (lambda: find_counter() is not None, "neither perf nor valgrind counts here"),
    "peak_pss_mib": (Path("/proc/self/smaps_rollup").is_file, "this kernel does not tell it"),
}


def check_baseline(budget: Budget) -> None:
    """Raises SaapError for a limit that compares with another run: `fit` has none."""
    for limit in budget.limits:
        if limit.kind is Kind.CHANGE or limit.metric.endswith("_vs_baseline"):
            raise _refused(
                limit,
                "it compares with a baseline, and fit has none (saap-edge bench NEW --against OLD, then gate)",
            )


def check_board(budget: Budget, here: bool, title: str, predicted: Collection[str]) -> None:
    """Raises SaapError for a limit on a metric that is neither measured on this machine nor predicted for the board.

    Args:
        budget: the limits.
        here: this machine is the board.
        title: the board, for people.
        predicted: metrics that can be predicted for the board.
    """
    for limit in budget.limits:
        if limit.kind is Kind.PREDICTED and limit.metric not in predicted:
            raise _refused(limit, f"the figures of {title} do not suffice to predict it")
        if limit.kind is Kind.BOARD and not here and limit.metric not in predicted:
            raise _refused(limit, f"it is measured on {title}, which this machine is not, and cannot be predicted")
        works, reason = _HERE.get(limit.metric, (bool, ""))
        if reason and not works():
            raise _refused(limit, reason)


def _refused(limit: Limit, reason: str) -> SaapError:
    return SaapError(f"the budget's {limit.metric} {limit.text} can never be judged here: {reason}; leave it out")
