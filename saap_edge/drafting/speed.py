"""Tokens and time of speculative decoding. Source: Leviathan, Kalman, Matias, Fast Inference from Transformers via
Speculative Decoding, arXiv 2211.17192, theorem 3.8; greedy, where a drafted token is kept if it is the parent's own.

A pass: the draft says `gamma` tokens, one after the other, and the parent runs them at once, with the token before
them. It keeps those up to the first that it would not have said, and says the next one itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["expected_tokens", "passes", "speed_up", "survival", "verification"]


def expected_tokens(alpha: float, gamma: int) -> float:
    """Tokens a pass gives if every drafted token is kept with the same chance `alpha`: (1 - a^(g + 1)) / (1 - a).

    >>> expected_tokens(0.5, 2), expected_tokens(1.0, 3), expected_tokens(0.0, 5)
    (1.75, 4.0, 1.0)
    """
    return math.fsum(alpha**power for power in range(gamma + 1))


def passes(accepted: Sequence[bool], gamma: int) -> int:
    """Passes that say as many tokens as there are flags: flag i tells whether the draft knew token i.

    What a pass says beyond the last token is lost, as at the end of an answer.

    >>> passes([True, True, False, True], 2), passes([False, False], 3), passes([True] * 6, 2)
    (2, 2, 2)
    """
    place = count = 0
    while place < len(accepted):
        kept = 0
        while kept < gamma and place + kept < len(accepted) and accepted[place + kept]:
            kept += 1
        place, count = place + kept + 1, count + 1
    return count


def survival(flags: Sequence[Sequence[bool]], longest: int) -> list[float]:
    """Shares of runs of accepted tokens that reach 1, 2, ... `longest` tokens. A run begins where an answer does, and
    after every rejected token. Runs that an answer's end cuts off count as far as they were seen; NaN where none were.

    >>> survival([[True, True, False, True, False], [False], [False]], 2)
    [0.5, 0.25]
    """
    reached, seen = [0] * longest, [0] * longest
    for own in flags:
        rejected = [place for place, accepted in enumerate(own) if not accepted]
        for begin, end in zip([-1, *rejected], [*rejected, len(own)], strict=True):
            run = end - begin - 1
            if run == 0 and end == len(own):
                continue  # nothing was seen of it
            known = longest if end < len(own) else run
            for length in range(1, min(known, longest) + 1):
                seen[length - 1] += 1
                reached[length - 1] += run >= length
    return [hit / count if count else math.nan for hit, count in zip(reached, seen, strict=True)]


def verification(tokens: int, further: float) -> float:
    """What running `tokens` tokens at once costs the parent, in its own single tokens; `further`: what each but the
    first adds. One by one is never cheaper, so that it is at most 1.

    >>> verification(1, 0.3), verification(3, 0.25), verification(3, 2.0)
    (1.0, 1.5, 3.0)
    """
    return 1 + (tokens - 1) * min(max(further, 0.0), 1.0)


def speed_up(tokens: float, gamma: int, draft: float, verified: float) -> float:
    """Speed with the draft over speed without: `tokens` a pass, for `gamma` tokens of the draft and a verification.

    `draft` and `verified` are in single tokens of the parent. The paper takes `verified` as 1.

    >>> speed_up(expected_tokens(0.8, 4), 4, draft=0.1, verified=1.0)  # doctest: +ELLIPSIS
    2.40...
    """
    return tokens / (gamma * draft + verified)
