"""How threads of this process wait for one another.

torch's OpenMP threads spin where they wait. On a machine that others use too, the thread they wait for may be the one
that does not run, and a stage then takes many times as long. Threads that sleep leave the core to it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

__all__ = ["sleep_while_waiting", "without_ours"]

_SLEEP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
_ours: set[str] = set()


def sleep_while_waiting() -> None:
    """Let threads of libraries that are loaded after this sleep where they wait, unless the user says otherwise."""
    if _ours or any(name in os.environ for name in _SLEEP):
        return
    os.environ.update(_SLEEP)
    _ours.update(_SLEEP)


def without_ours(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what `sleep_while_waiting` set: runtimes are measured as users run them."""
    return {name: value for name, value in environment.items() if name not in _ours}
