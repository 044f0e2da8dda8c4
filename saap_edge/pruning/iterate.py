"""Iterative pruning: a share of the budget at a time, with repair and fresh scores between the rounds.

What a structure is worth changes once others are gone; one pass cannot see that (LLM-Pruner and Minitron's guide
recommend rounds at high ratios). Every round starts again from the dense weights with all structures removed so far
repaired at once, so repairs do not pile up.
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
    """Values after `rounds` rounds towards `ratio`; what earlier rounds removed is -inf, so that it leaves first.

    Args:
        value: scores `model` as it then is (removed columns zero, the rest repaired) and gives each structure's value.
        windows: calibration token ids [n, window] of the repairs.
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
