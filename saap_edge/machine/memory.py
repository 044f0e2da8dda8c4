"""Memory that is free but not given back."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

__all__ = ["give_back"]


@cache
def _trim() -> Callable[[int], int] | None:
    """glibc's malloc_trim; None with other C libraries, which give back more by themselves."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None


def give_back() -> None:
    """Return freed memory to the system.

    glibc keeps what was freed between blocks in use. What the next pass needs may not fit into these gaps, so that the
    peak of a stage is above what it ever holds at once: by a sixth when a model is scored in float32. The system clears
    pages before it gives them again, which takes time: not after every small step.
    """
    if trim := _trim():
        trim(0)
