"""Comparing answers, for torch's machine and for a board: numpy only."""

from __future__ import annotations

import numpy as np

__all__ = ["HARD_TEXT", "VERIFIED", "VERIFIED_CHARACTERS", "relative_error"]

VERIFIED = 48  # tokens that verify runs through every artifact
VERIFIED_CHARACTERS = 2000  # of the test text, that these tokens are taken from

# What tokenizers get wrong: runs of spaces, tabs, code, digits, accents, other scripts, emoji, contractions.
HARD_TEXT = (
    "Hello,  world!\n\n\tdef f(x_1):   return x**2 # it's 12345.67\n"
    "Zürich — “naïve” café… Привет, мир! 你好，世界。 日本語 العربية 🙂👩‍💻 don't I'LL\r\n  end "
)


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """RMS of the difference over RMS of `expected`, both [tokens, vocab] and centred per token (softmax ignores it).

    Infinite when `actual` is not finite or has another shape.
    """
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return float("inf")
    actual = actual - actual.mean(axis=-1, keepdims=True)
    expected = expected - expected.mean(axis=-1, keepdims=True)
    return float(np.sqrt(np.square(actual - expected).mean() / np.square(expected).mean()))
