"""Shortening a sequence where what layers remember has no way back: it is read again."""

from __future__ import annotations

from collections.abc import Sequence

from saap_edge.engines.base import Engine
from saap_edge.engines.options import PIECE

__all__ = ["replay"]


def replay(engine: Engine, tokens: Sequence[int]) -> None:
    """Leave an engine as it is after `tokens`."""
    engine.reset()
    for start in range(0, len(tokens), PIECE):
        engine.forward(tokens[start : start + PIECE])
