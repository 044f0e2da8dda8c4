"""Iterative pruning: a share of the budget at a time, with repair and fresh scores between the rounds.

What a structure is worth changes once others are gone, and a single pass cannot see that. LLM-Pruner and Minitron's
guide recommend rounds at high ratios. Every round starts from the dense weights again and repairs the removal of all
structures so far at once, so errors of repairs do not accumulate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from saap_edge.pruning.kept import kept_structures, ranked_widths
from saap_edge.pruning.orders import Values
from saap_edge.pruning.repair import MIX, repair, restored
from saap_edge.pruning.space import Space
from saap_edge.pruning.surgery import Kept

__all__ = ["iterative_values"]


def iterative_values(
    model: Any,
    space: Space,
    value: Callable[[], Values],
    windows: torch.Tensor,
    ratio: float,
    rounds: int,
    mix: float = MIX,
) -> Values:
    """Values after `rounds` rounds towards `ratio`. What earlier rounds removed has -inf, so that it leaves first.

    Args:
        model: the dense transformers model; it is dense again at the end.
        value: scores the repaired `model`, in which removed columns are zero, and returns each structure's value.
        windows: calibration token ids [n, window] for the repairs.
        ratio: share of the dense cost to save.
        mix: as in `repair`.

    Raises SaapError as `ranked_widths`.
    """
    kept: Kept | None = None
    values: Values = []
    for number in range(1, rounds + 1):
        with restored(model):
            if kept is not None:
                repair(model, kept, windows, mix)
            values = value()
        if kept is not None:
            values = _without_removed(values, kept)
        kept = kept_structures(values, ranked_widths(values, space, ratio * number / rounds))
    return values


def _without_removed(values: Values, kept: Kept) -> Values:
    found: Values = []
    for layer, kinds in zip(values, kept, strict=True):
        found.append({kind: np.where(np.isin(np.arange(len(v)), kinds[kind]), v, -np.inf) for kind, v in layer.items()})
    return found
