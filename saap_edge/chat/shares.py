"""Shares of instructions and their intervals. The error is that of having asked these instructions and not others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

__all__ = ["paired_difference", "share", "wilson"]

Z = 1.959963984540054  # of 95 %


def wilson(count: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share: `count` of `n`. Raises ValueError for n = 0.

    Source: Brown, Cai, DasGupta, Interval Estimation for a Binomial Proportion, 2001.

    >>> [round(end, 3) for end in wilson(8, 10)]
    [0.49, 0.943]
    """
    if n < 1:
        raise ValueError("a share needs a case")
    middle, square = (count + Z**2 / 2) / (n + Z**2), count * (n - count) / n + Z**2 / 4
    reach = Z / (n + Z**2) * math.sqrt(square)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def paired_difference(before: Sequence[bool], after: Sequence[bool]) -> tuple[float, float, float]:
    """Share of `before` minus share of `after` on the same cases, and its 95 % interval: (difference, low, high).

    Only cases in which they differ tell them apart. The interval is Wald's after one more case of each kind in which
    they differ. Source: Bonett, Price, Adjusted Wald confidence interval for a difference of binomial proportions based
    on paired data, 2012. Raises ValueError for no cases.

    >>> found = paired_difference([True] * 8 + [False] * 2, [True] * 6 + [False] * 4)
    >>> [round(value, 3) for value in found]
    [0.2, -0.146, 0.479]
    >>> [round(value, 3) for value in paired_difference([True] * 40, [True] * 40)]
    [0.0, -0.066, 0.066]
    """
    lost = sum(was and not now for was, now in zip(before, after, strict=True))
    won = sum(now and not was for was, now in zip(before, after, strict=True))
    n = len(before)
    if n < 1:
        raise ValueError("a share needs a case")
    middle, differ = (lost - won) / (n + 2), (lost + won + 2) / (n + 2)
    reach = Z * math.sqrt((differ - middle**2) / (n + 2))
    return (lost - won) / n, max(-1.0, middle - reach), min(1.0, middle + reach)


def share(cases: Sequence[bool]) -> dict[str, Any]:
    """A share as JSON: n, count, share, its binomial standard error, and the ends of Wilson's 95 % interval.

    Without cases, all but n and count are None.

    >>> share([True, True, False, True]) | {"low": 0, "high": 0}
    {'n': 4, 'count': 3, 'share': 0.75, 'stderr': 0.21650635094610965, 'low': 0, 'high': 0}
    """
    n, count = len(cases), sum(map(bool, cases))
    if not n:
        return {"n": 0, "count": 0, "share": None, "stderr": None, "low": None, "high": None}
    low, high = wilson(count, n)
    found = count / n
    return {
        "n": n, "count": count, "share": found, "stderr": math.sqrt(found * (1 - found) / n), "low": low, "high": high,
    }  # fmt: skip
