"""Choosing the next ratio to try, in search of the least that meets a budget. Pure functions of the outcomes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

__all__ = ["STEP", "Outcome", "least_met", "next_try"]

STEP = 5  # percent: recovery with another seed makes a larger difference than a finer step

# meets: the budget is met. more: too slow or too large, prune more. less: too much quality is lost, prune less.
# both: neither more pruning nor less can help.
Outcome = Literal["meets", "more", "less", "both"]


def next_try(tries: Mapping[int, Outcome], first: int, most: int) -> int | None:
    """The next percentage to remove, a multiple of STEP from 0 (dense) to `most`; None where the answer is known.

    With more pruning, speed and size only gain and quality only loses, so that every outcome rules out one side.
    Predictions put the answer at `first`. The search begins there with small steps, which double, because predictions
    are near.

    >>> next_try({}, first=20, most=90), next_try({20: "more"}, 20, 90), next_try({20: "more", 25: "meets"}, 20, 90)
    (20, 25, None)
    """
    if not tries:
        return min(first, most)
    if "both" in tries.values():
        return None
    low, high = _bounds(tries)
    steps = STEP * 2 ** (len(tries) - 1)
    if high is None:
        return None if low >= most else min(low + steps, most)
    if high - low <= STEP:
        return None
    return max(low + STEP, high - steps) if len(tries) < 3 else (low + high) // 2 // STEP * STEP


def least_met(tries: Mapping[int, Outcome]) -> int | None:
    """The least percentage of those tried that meets the budget; None where none does.

    >>> least_met({20: "more", 25: "meets", 30: "meets"})
    25
    """
    return min((ratio for ratio, outcome in tries.items() if outcome == "meets"), default=None)


def _bounds(tries: Mapping[int, Outcome]) -> tuple[int, int | None]:
    """(largest percentage known to be too little, least one known to be enough or too much; None: unknown)."""
    high = min((ratio for ratio, outcome in tries.items() if outcome != "more"), default=None)
    low = max((ratio for ratio, outcome in tries.items() if outcome == "more"), default=-STEP)
    return low, high
