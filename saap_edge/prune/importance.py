"""Importance of coupled structures for one calibration batch (METHOD of arXiv 2412.15127, section on coarse and fine).

Pure functions: a projection's weight, bias and gradients in, one figure per structure out.
"""

from __future__ import annotations

import torch

__all__ = ["structure_importance"]


def structure_importance(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    structures: int,
    columns: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Vector- and element-wise importance of the slices of one parameter.

    vector:  | sum_w g w |          (first-order Taylor of removing the whole slice)
    element: sum_w | g w - 1/2 g^2 w^2 |   (g^2 is the batch's diagonal Fisher, standing for the Hessian)

    Args:
        weight, gradient: [out, in], or [out] for a bias.
        structures: how many equal, consecutive slices the sliced axis holds.
        columns: slice the input axis instead of the output axis.

    Returns two float32 tensors [structures]. Raises ValueError when the axis does not divide into `structures`.
    """
    taylor = weight.float() * gradient.float()
    if columns:
        taylor = taylor.T
    if taylor.shape[0] % structures:
        raise ValueError(f"an axis of {taylor.shape[0]} does not divide into {structures} structures")
    slices = taylor.reshape(structures, -1)
    return slices.sum(1).abs(), (slices - 0.5 * slices.square()).abs().sum(1)
