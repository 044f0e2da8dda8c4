"""Comparing the answers of two runtimes. Needs only numpy, so that a board can do it, too."""

from __future__ import annotations

import numpy as np

__all__ = ["DIGITS", "HARD_TEXT", "VERIFIED", "VERIFIED_CHARACTERS", "relative_error"]

VERIFIED = 48  # tokens that verify runs through every artifact
VERIFIED_CHARACTERS = 2000  # of the test text, from which these tokens are taken

# What tokenizers get wrong: runs of spaces, tabs, code, digits, accents, other scripts, emoji, contractions.
HARD_TEXT = (
    "Hello,  world!\n\n\tdef f(x_1):   return x**2 # it's 12345.67\n"
    "Zürich — “naïve” café… Привет, мир! 你好，世界。 日本語 العربية 🙂👩‍💻 don't I'LL\r\n  end "
)
# Tokenizers that split digits first differ in the spaces before them.
DIGITS = "a  1\n\n 2   34 5,678  "


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """RMS of the difference over RMS of `expected`, no unit. Both are logits [tokens, vocab].

    They are centred for each token, because softmax ignores a constant. Infinite when `actual` is not finite or has
    another shape.

    >>> expected = np.array([[1.0, 2.0, 3.0]])
    >>> relative_error(expected + 5, expected), relative_error(1.5 * expected, expected)
    (0.0, 0.5)
    """
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return float("inf")
    actual = actual - actual.mean(axis=-1, keepdims=True)
    expected = expected - expected.mean(axis=-1, keepdims=True)
    return float(np.sqrt(np.square(actual - expected).mean() / np.square(expected).mean()))
