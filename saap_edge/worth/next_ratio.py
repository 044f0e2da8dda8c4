"""Which ratio to try next, on the way to the least that meets a budget. Pure: outcomes in, a ratio out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

__all__ = ["STEP", "Outcome", "least_met", "next_try"]

STEP = 5  # percent: finer steps differ by less than recovery does between seeds

# meets: the budget holds. more: too slow or too large, prune more. less: too much quality lost, prune less.
# both: more pruning cannot help and less cannot either.
Outcome = Literal["meets", "more", "less", "both"]


def next_try(tries: Mapping[int, Outcome], first: int, most: int) -> int | None:
    """The next percentage to remove, a multiple of STEP from 0 (dense) to `most`; None where the answer is known.

    Speed and size only gain from pruning and quality only loses, so that every outcome rules out one side. `first` is
    where predictions put the answer: from there the steps double, because predictions are near.
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
    """The least percentage that meets the budget, of those tried."""
    return min((ratio for ratio, outcome in tries.items() if outcome == "meets"), default=None)


def _bounds(tries: Mapping[int, Outcome]) -> tuple[int, int | None]:
    """(the largest percentage known to be too little, the least known to be enough or too much)."""
    high = min((ratio for ratio, outcome in tries.items() if outcome != "more"), default=None)
    low = max((ratio for ratio, outcome in tries.items() if outcome == "more"), default=-STEP)
    return low, high
