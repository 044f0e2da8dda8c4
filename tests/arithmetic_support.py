"""How near a runtime must be to its emulation (evaluation/arithmetic.py), the independent truth of answers."""

from __future__ import annotations

import numpy as np

from saap_edge.evaluation.parity import relative_error


def assert_as_predicted(actual: np.ndarray, emulated: np.ndarray, exact: np.ndarray) -> None:
    """Logits [tokens, vocab] of a runtime, of the emulation and of exact arithmetic on the same weights.

    Emulation and runtime differ by float32's rounding, 2e-7, until one activation falls on the other side of a rounding
    boundary; from there on that token and those that attend to it are rounded independently. So some tokens are
    still equal, and all together are as far from exact as predicted: within 8 % in what was seen.
    """
    cost = relative_error(emulated, exact)
    assert 0 < cost < 0.04
    assert 0.8 * cost < relative_error(actual, exact) < 1.25 * cost
    tokens = [relative_error(actual[at : at + 1], emulated[at : at + 1]) for at in range(len(actual))]
    assert np.quantile(tokens, 0.1) < 1e-3 * cost, tokens
