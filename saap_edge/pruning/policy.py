"""Policy gradient: a pruning policy learnt by forward passes alone (arXiv 2406.10576).

It is for machines without memory for gradients. Every KV group and FFN channel is kept with its own probability s. Each
step draws masks m and measures the model's loss L under each. s then moves against the score-function estimate of the
gradient,
    d E[L] / d s = E[ (L - baseline) (m - s) / (s (1 - s)) ],
and is projected back to the budget, so that the sum of s times cost equals the cost that may stay. The structures with
the lowest s leave first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from saap_edge.pruning.masks import masked
from saap_edge.pruning.orders import Values
from saap_edge.pruning.score import SUBLAYERS
from saap_edge.pruning.space import Space, shape_widths

__all__ = ["policy_values"]

DRAWS = 4  # masks a step: their mean loss is the baseline
RATE = 0.3  # largest change of a probability in one step
EDGE = 0.02  # probabilities stay this far from 0 and 1, so that no structure is ever decided for good


@torch.no_grad()
def policy_values(
    model: Any,
    space: Space,
    start: Values,
    windows: torch.Tensor,
    ratio: float,
    steps: int,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> Values:
    """Learn, for a budget, the probability that each structure is kept; `[layer][kind]` [structures].

    Args:
        model: the dense transformers model, in evaluation mode; it is not changed.
        start: values of some order (the authors start from a metric too); only their ranks within a sublayer count.
        windows: calibration token ids [n, window]; each step sees one window.
        ratio: share of the dense cost to save.
        steps: each is DRAWS forward passes over one window.
        progress: called after every step.
    """
    rng = np.random.default_rng(seed)
    keys = [(layer, kind) for layer in range(len(space.shapes)) for kind in SUBLAYERS]
    costs = np.concatenate([
        np.full(len(start[layer][kind]), space.structure_cost(layer, kind)) for layer, kind in keys
    ])  # fmt: skip
    goal = costs.sum() - ratio * space.total(space.dense())
    ranks = [np.argsort(np.argsort(start[layer][kind])) / len(start[layer][kind]) for layer, kind in keys]
    keep = _project(1 - ratio + 0.3 * (np.concatenate(ranks) - 0.5), costs, goal)
    sizes = np.cumsum([len(rank) for rank in ranks])[:-1]
    masks: dict[tuple[int, str], torch.Tensor] = {}
    with masked(model, space, masks):
        for step in range(steps):
            window = windows[step % len(windows)][None].to(model.get_input_embeddings().weight.device)
            drawn = rng.random((DRAWS, len(keep))) < keep
            losses = []
            for mask in drawn:
                for (layer, kind), part in zip(keys, np.split(mask, sizes), strict=True):
                    masks[layer, kind] = torch.from_numpy(part)
                losses.append(float(model(input_ids=window, labels=window, use_cache=False).loss))
            advantage = np.array(losses) - np.mean(losses)
            gradient = (advantage[:, None] * (drawn - keep) / (keep * (1 - keep))).mean(0)
            keep = _project(keep - RATE * gradient / max(np.abs(gradient).max(), 1e-12), costs, goal)
            progress()
    learnt = zip(keys, np.split(keep, sizes), strict=True)
    values: Values = [{"slots": np.ones(shape_widths(shape)["slots"])} for shape in space.shapes]
    for (layer, kind), part in learnt:
        values[layer][kind] = part
    return values


def _project(keep: np.ndarray, costs: np.ndarray, goal: float) -> np.ndarray:
    """The nearest probabilities in [EDGE, 1 - EDGE] of expected cost `goal`: `keep` shifted, found by bisection."""
    low, high = -2.0, 2.0
    for _ in range(60):
        shift = (low + high) / 2
        if np.clip(keep + shift, EDGE, 1 - EDGE) @ costs < goal:
            low = shift
        else:
            high = shift
    return np.clip(keep + high, EDGE, 1 - EDGE)
