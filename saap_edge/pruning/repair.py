"""Repair: least-squares update of `o_proj` and `down_proj` after some of their inputs are gone.

For a projection y = W x + b whose inputs are cut to `kept`, the weights that come closest to a target output t have a
closed form, W' = T X^T (X X^T + ridge)^-1. It needs no gradient and no training. Layers are repaired in order, each on
the activations that the repaired layers before it produce. The target is a mixture of two:

  local   the dense projection's output on these same activations: repairs the cut of this layer alone
  dense   what brings the residual stream back to the dense model's: repairs the errors of earlier layers too

GPTQ-style methods use the first. The second is the asymmetric target of GPTAQ (arXiv 2504.02692), here for structures.
A mixture is better than either: docs/method.md has the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from saap_edge.model.stream import (
    Branch,
    attention_branch,
    ffn_branch,
    follow,
    layer_arguments,
    layer_inputs,
    require_finite_sums,
    sandwiched,
)
from saap_edge.pruning.score import SUBLAYERS
from saap_edge.pruning.surgery import PROJECTIONS, Kept, output_columns, output_projections

__all__ = ["MIX", "least_squares", "repair", "restored"]

RIDGE = 1e-3  # share of the mean diagonal of X X^T: enough for channels that are nearly collinear
MIX = 0.6  # share of the dense target


def least_squares(gram: torch.Tensor, cross: torch.Tensor, start: torch.Tensor, ridge: float = RIDGE) -> torch.Tensor:
    """Weights [out, in] that minimise || t - W x ||^2 + ridge || W - start ||^2 over the data. Solved in float64.

    Args:
        gram: [in, in], sum of x x^T.
        cross: [out, in], sum of t x^T.
        start: [out, in]. The ridge pulls towards it; without data it is the result.
        ridge: relative to the mean diagonal of `gram`.

    Inputs (1, 0) and (0, 1) with targets 2 and 3:

    >>> least_squares(torch.eye(2), torch.tensor([[2.0, 3.0]]), torch.zeros(1, 2), ridge=0.0).tolist()
    [[2.0, 3.0]]
    """
    gram, start64 = gram.double(), start.double()
    weight = ridge * gram.diagonal().mean().clamp_min(1e-30)
    system = gram + weight * torch.eye(len(gram), dtype=torch.float64, device=gram.device)
    missing = cross.double() - start64 @ gram
    solved: torch.Tensor = start64 + torch.linalg.solve(system, missing.T).T
    return solved.to(start.dtype)


@contextmanager
def restored(model: Any) -> Iterator[None]:
    """Restore all output projections on leaving, so that several repairs can be tried on one model."""
    modules = [module for layer in model.model.layers for module in output_projections(layer).values()]
    before = [(module.weight.detach().clone(), module.bias) for module in modules]
    try:
        yield
    finally:
        for module, (weight, bias) in zip(modules, before, strict=True):
            module.weight.data.copy_(weight)
            module.bias = bias


@torch.no_grad()
def repair(
    model: Any,
    kept: Kept,
    windows: torch.Tensor,
    mix: float = MIX,
    bias: bool = False,
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Repair the dense `model` in place, layer by layer, for a cut to `kept`. Removed columns become zero.

    `surgery.cut` of the result is the repaired pruned model.

    Args:
        model: the dense transformers causal LM, in evaluation mode.
        kept: structures that stay, `[layer][kind]` ascending indices.
        windows: calibration token ids [n, window].
        mix: share of the dense target, 0 to 1. Families that normalise a sublayer's output use the local target only,
            because their residual is not a linear function of the projection.
        bias: compensate with a bias as well, as part of the least squares (after FLAP, arXiv 2312.11983).
        progress: called after every layer.

    Raises SaapError when an intermediate result is not finite.
    """
    arguments = layer_arguments(model, windows)
    dense = layer_inputs(model, windows)
    pruned = dense  # one stream until the first cut
    for index, (layer, keywords, kinds) in enumerate(zip(model.model.layers, arguments, kept, strict=True)):
        share = 0.0 if sandwiched(layer) else mix
        follow(layer, dense)
        follow(layer, pruned)
        branches = (attention_branch(layer, keywords), ffn_branch(layer))
        for sublayer, branch, module in zip(SUBLAYERS, branches, output_projections(layer).values(), strict=True):
            columns = output_columns(layer, sublayer, kinds)
            if pruned is dense and len(columns) == module.weight.shape[1]:
                dense[:] = [state + branch(state) for state in dense]
                continue
            pruned = list(dense) if pruned is dense else pruned
            moments = _follow_both(module, branch, columns, dense, pruned, share, bias)
            for sums in (moments.gram, moments.cross):
                require_finite_sums(sums, index, PROJECTIONS[sublayer])
            moments.solve()
            pruned[:] = [state + branch(state) for state in pruned]
        progress()


def _follow_both(
    module: Any,
    branch: Branch,
    columns: torch.Tensor,
    dense: list[torch.Tensor],
    pruned: list[torch.Tensor],
    mix: float,
    bias: bool,
) -> _Moments:
    """Run a sublayer on the dense stream, in place; return the moments that repair its output projection."""
    columns = columns.to(module.weight.device)
    moments = _Moments(module, columns, bias)
    for index, state in enumerate(dense):
        dense[index] = state + branch(state)
        with moments.watching() as seen:
            local = branch(pruned[index])
        wanted = (1 - mix) * seen.output + mix * (dense[index] - pruned[index]) if mix else seen.output
        moments.add(seen.inputs, wanted)
        del local
    return moments


class _Moments:
    """Second moments of one projection's kept inputs (and of the constant 1, for a bias) with the target outputs."""

    def __init__(self, module: Any, columns: torch.Tensor, bias: bool) -> None:
        self.module, self.columns = module, columns
        self.fits_bias = bias or module.bias is not None
        width = len(columns) + self.fits_bias
        device = module.weight.device
        self.gram = torch.zeros(width, width, device=device)
        self.cross = torch.zeros(module.weight.shape[0], width, device=device)
        self.inputs = self.output = torch.empty(0)

    @contextmanager
    def watching(self) -> Iterator[_Moments]:
        def keep(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            self.inputs, self.output = inputs[0], output

        handle = self.module.register_forward_hook(keep)
        try:
            yield self
        finally:
            handle.remove()

    def add(self, inputs: torch.Tensor, wanted: torch.Tensor) -> None:
        rows = inputs.reshape(-1, inputs.shape[-1]).index_select(1, self.columns).float()
        if self.fits_bias:
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        self.gram.addmm_(rows.T, rows)
        self.cross.addmm_(wanted.reshape(len(rows), -1).float().T, rows)

    def solve(self) -> None:
        """Repair the projection, in place."""
        module = self.module
        if not len(self.columns):
            module.weight.zero_()
            return
        start = module.weight.index_select(1, self.columns)
        if self.fits_bias:
            old = module.bias if module.bias is not None else torch.zeros_like(start[:, 0])
            start = torch.cat([start, old[:, None].to(start.dtype)], dim=1)
        solved = least_squares(self.gram, self.cross, start)
        module.weight.zero_()
        module.weight.index_copy_(1, self.columns, solved[:, : len(self.columns)].contiguous())
        if self.fits_bias:
            module.bias = torch.nn.Parameter(solved[:, -1].contiguous(), requires_grad=False)
