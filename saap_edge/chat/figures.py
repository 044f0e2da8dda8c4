"""Figures of answers: how many follow their instruction, end by themselves, repeat themselves, and agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from saap_edge.chat.answers import Answer
from saap_edge.chat.instructions import Instructions
from saap_edge.chat.shares import paired_difference, share
from saap_edge.engines.chat import AGREED

__all__ = ["agreement", "figures", "repeats"]

WORDS, OFTEN = 4, 3


def repeats(text: str) -> bool:
    """Whether an answer repeats itself: some run of 4 words, in capitals or small, comes 3 times or more.

    >>> repeats("I like to go. I like to go. I like to go."), repeats("I like to go. I like to stay.")
    (True, False)
    """
    said = text.lower().split()
    runs = Counter(tuple(said[start : start + WORDS]) for start in range(len(said) - WORDS + 1))
    return max(runs.values(), default=0) >= OFTEN


def agreement(first: Sequence[int], second: Sequence[int], count: int) -> float:
    """Share of the first tokens, at most `count`, that two answers begin with alike. 1 for two empty answers.

    >>> agreement([5, 6, 7, 8], [5, 6, 9, 8], 4), agreement([5, 6], [5, 6, 7, 8], 32)
    (0.5, 0.5)
    """
    longest = min(count, max(len(first), len(second)))
    alike = 0
    while alike < min(len(first), len(second), longest) and first[alike] == second[alike]:
        alike += 1
    return alike / longest if longest else 1.0


def figures(
    instructions: Instructions, answers: Sequence[Answer | None], dense: Sequence[Answer | None] | None = None
) -> dict[str, Any]:
    """The figures of one artifact's answers as JSON; with those of a `dense` model, their agreement too.

    Shares are those of `chat.shares.share`. `checks` has one for each kind of check. `agreement` is a mean over the
    instructions that both answered, with its standard error; `lost` is the dense model's share less this one's.
    """
    rows = list(zip(instructions.rows, answers, strict=True))
    said = [(row, answer) for row, answer in rows if answer is not None]
    kinds: dict[str, list[bool]] = {}
    for row, answer in said:
        for kind, holds in zip(row.kinds, answer.followed, strict=True):
            kinds.setdefault(kind, []).append(holds)
    return {
        "n": len(said), "skipped": len(rows) - len(said),
        "followed": share([all(answer.followed) for _, answer in said]),
        "ends": share([answer.ended for _, answer in said]),
        "repeats": share([repeats(answer.text) for _, answer in said]),
        "checks": {kind: share(kinds[kind]) for kind in sorted(kinds)},
        "tokens": sum(answer.tokens for _, answer in said),
        "agreement": None if dense is None else _agreement(answers, dense),
        "lost": None if dense is None else _lost(answers, dense),
    }  # fmt: skip


def _lost(answers: Sequence[Answer | None], dense: Sequence[Answer | None]) -> dict[str, Any]:
    """What the dense model's shares have more, with the interval of the paired difference."""
    both = [(one, other) for one, other in zip(answers, dense, strict=True) if one and other]
    cases = {
        "followed": ([all(other.followed) for _, other in both], [all(one.followed) for one, _ in both]),
        "ends": ([other.ended for _, other in both], [one.ended for one, _ in both]),
    }
    names = ("difference", "low", "high")
    return {name: dict(zip(names, paired_difference(*pair), strict=True)) for name, pair in cases.items() if both}


def _agreement(answers: Sequence[Answer | None], dense: Sequence[Answer | None]) -> dict[str, Any]:
    both = [(one, other) for one, other in zip(answers, dense, strict=True) if one and other]
    alike = [agreement(one.ids, other.ids, AGREED) for one, other in both]
    error = float(np.std(alike, ddof=1) / np.sqrt(len(alike))) if len(alike) > 1 else None
    return {"n": len(alike), "share": float(np.mean(alike)) if alike else None, "stderr": error, "tokens": AGREED}
