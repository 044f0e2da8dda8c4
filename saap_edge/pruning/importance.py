"""Importance of coupled structures for one calibration batch, as pure functions of weights, gradients and activations.

Coarse and fine metric: arXiv 2412.15127 (after LLM-Pruner, 2305.11627). Activation metrics: FLAP's WIFV (2312.11983)
and Wanda's norm times weight (2306.11695), summed over a structure.

Each metric sums over every row (or column) of a weight, and then over the rows (or columns) of a structure. The first
sum is the costly one. It is taken once and serves every kind of structure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

__all__ = ["column_importance", "gradient_sums", "per_structure", "weight_sums"]

CACHED = 1 << 16  # elements summed at a time on a CPU: their float32 copies stay in its cache
HELD = 1 << 24  # the same on a GPU, which would wait for the host between small pieces


def per_structure(figures: torch.Tensor, structures: int, outer: int = 1) -> torch.Tensor:
    """Sum `figures` [n, ...] over the slices of `structures`; returns [structures].

    The first axis is [outer, structures, rest]: `outer` is 1 for consecutive slices (kv groups, channels), the number
    of kv heads for query slots, whose slices repeat in every kv group.
    Raises ValueError when the axis does not divide so.

    Eight query heads in two kv groups of four. Slot r is the r-th head of both groups:

    >>> heads = torch.arange(8.0)
    >>> per_structure(heads, 2).tolist(), per_structure(heads, 4, outer=2).tolist()
    ([6.0, 22.0], [4.0, 6.0, 8.0, 10.0])
    """
    if figures.shape[0] % (outer * structures):
        raise ValueError(f"an axis of {figures.shape[0]} does not divide into {outer} x {structures} slices")
    return figures.reshape(outer, structures, -1).sum(dim=(0, 2))


def gradient_sums(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    columns: bool,
    fisher: torch.Tensor | None = None,
    second_order: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over every row (or column) of one parameter. Vector- and element-wise importance are made of them.

    vector of a slice:  | sum_w g w |               (first-order Taylor of removing the whole slice)
    element of a slice: sum_w | g w - 1/2 F w^2 |   (F, the diagonal Fisher, stands for the Hessian)

    Both are those of LLM-Pruner (arXiv 2305.11627).

    Args:
        weight, gradient: [out, in], or [out] for a bias.
        columns: sum over the output axis instead of the input axis.
        fisher: F, shaped as the weight; the batch's own g^2 where absent.
        second_order: take the second-order term into the vector-wise metric too.

    Returns float32 [out] (columns: [in]) twice: signed sums, whose absolute value is taken only after they are added
    over a slice, and sums of absolute values.

    >>> vector, element = gradient_sums(torch.tensor([[2.0, -1.0]]), torch.tensor([[0.5, 1.0]]), columns=False)
    >>> vector.item(), element.item()
    (0.0, 2.0)
    """

    def figures(w: torch.Tensor, g: torch.Tensor, f: torch.Tensor | None = None) -> list[torch.Tensor]:
        taylor = w * g
        curved = torch.addcmul(taylor, taylor if f is None else f * w, taylor if f is None else w, value=-0.5)
        return [(curved if second_order else taylor), curved.abs()]

    vector, element = _sums(columns, figures, [weight, gradient] if fisher is None else [weight, gradient, fisher])
    return vector, element


def weight_sums(weight: torch.Tensor, columns: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of |w| and of w^2 over every row (or column) of a parameter [out, in] or [out]; float32 [out] (or [in]).

    >>> [sums.tolist() for sums in weight_sums(torch.tensor([[3.0, -4.0], [0.0, 1.0]]), columns=False)]
    [[7.0, 1.0], [25.0, 1.0]]
    """
    absolute, square = _sums(columns, lambda w: [w.abs(), w.square()], [weight])
    return absolute, square


def _sums(
    columns: bool, figures: Callable[..., list[torch.Tensor]], tensors: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Sum elementwise float32 figures of equally shaped tensors over their rows (or columns), some rows at a time."""
    rows = tensors[0].shape[0]
    flat = [tensor.reshape(rows, -1) for tensor in tensors]
    step = max(1, (CACHED if flat[0].device.type == "cpu" else HELD) // flat[0].shape[1])
    parts = [
        torch.stack([figure.sum(0 if columns else 1) for figure in figures(*(piece.float() for piece in pieces))])
        for pieces in zip(*(tensor.split(step) for tensor in flat), strict=True)
    ]
    return list(torch.stack(parts).sum(0) if columns else torch.cat(parts, dim=1))


def column_importance(
    absolute: torch.Tensor, norms: torch.Tensor, mean: torch.Tensor, square: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Importance of every input of a projection, each [in].

    wanda: sum_i |w_ij| * sqrt(E[x_j^2]) (arXiv 2306.11695).
    flap: Var[x_j] * ||w_j||^2, how much the column's output fluctuates (arXiv 2312.11983).

    Args:
        absolute, norms: `weight_sums` of the projection's columns.
        mean, square: mean of x and of x^2 over tokens.

    >>> three, one, five = torch.tensor([3.0]), torch.tensor([1.0]), torch.tensor([5.0])
    >>> found = column_importance(absolute=three, norms=five, mean=one, square=torch.tensor([4.0]))
    >>> {name: value.item() for name, value in found.items()}
    {'wanda': 6.0, 'flap': 15.0}
    """
    return {"wanda": absolute * square.sqrt(), "flap": (square - mean.square()).clamp_min(0) * norms}
