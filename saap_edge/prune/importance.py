"""Importance of coupled structures for one calibration batch, as pure functions of weights, gradients and activations.

Coarse and fine metric: arXiv 2412.15127 (after LLM-Pruner, 2305.11627). Activation metrics: FLAP's WIFV (2312.11983)
and Wanda's norm times weight (2306.11695), summed over a structure.
"""

from __future__ import annotations

import torch

__all__ = ["column_importance", "gradient_importance", "per_structure"]


def per_structure(figures: torch.Tensor, structures: int, outer: int = 1) -> torch.Tensor:
    """Sum `figures` [n, ...] over the slices of `structures`; returns [structures].

    The first axis is [outer, structures, rest]: `outer` is 1 for consecutive slices (kv groups, channels), the number
    of kv heads for query slots, whose slices repeat in every kv group.
    Raises ValueError when the axis does not divide so.
    """
    if figures.shape[0] % (outer * structures):
        raise ValueError(f"an axis of {figures.shape[0]} does not divide into {outer} x {structures} slices")
    return figures.reshape(outer, structures, -1).sum(dim=(0, 2))


def gradient_importance(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    structures: int,
    columns: bool,
    outer: int = 1,
    fisher: torch.Tensor | None = None,
    second_order: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Vector- and element-wise importance of the slices of one parameter.

    vector:  | sum_w g w |               (first-order Taylor of removing the whole slice)
    element: sum_w | g w - 1/2 F w^2 |   (F, the diagonal Fisher, stands for the Hessian)

    Args:
        weight, gradient: [out, in], or [out] for a bias.
        structures, outer: the slices, as in `per_structure`.
        columns: slice the input axis instead of the output axis.
        fisher: F, shaped as the weight; the batch's own g^2 where absent.
        second_order: take the second-order term into the vector-wise metric too.

    Returns two float32 tensors [structures]. Raises ValueError when the axis does not divide into the slices.
    """
    taylor = weight.float() * gradient.float()
    curved = taylor.square() if fisher is None else fisher * weight.float().square()
    curved.mul_(-0.5).add_(taylor)
    if columns:
        taylor, curved = taylor.T, curved.T
    vector = per_structure(curved if second_order else taylor, structures, outer).abs()
    return vector, per_structure(curved.abs_(), structures, outer)


def column_importance(weight: torch.Tensor, mean: torch.Tensor, square: torch.Tensor) -> dict[str, torch.Tensor]:
    """Importance of every input of a projection [out, in]; `mean`, `square` [in]: mean of x and of x^2 over tokens.

    wanda: sum_i |w_ij| * ||x_j||;  flap: Var[x_j] * ||w_j||^2 (the fluctuation of the column's output). Each [in].
    """
    weight = weight.float()
    norms = weight.square().sum(0)
    return {
        "wanda": weight.abs().sum(0) * square.sqrt(),
        "flap": (square - mean.square()).clamp_min(0) * norms,
    }
