"""Repair: least-squares update of `o_proj` and `down_proj` after some of their inputs are gone.

For a projection y = W x + b whose inputs are cut to `kept`, the weights that come closest to a wanted output t have a
closed form, W' = T X^T (X X^T + ridge)^-1, so no gradient and no training is needed. Layers are mended in order, each
on the activations that the already mended layers before it produce. What is wanted is a mixture of two targets:

  local   what the dense projection gives on these same activations: mends the cut of this layer alone
  dense   what brings the residual stream back to the dense model's: mends the errors of the layers before it too

(GPTQ-style methods use the first; the second is the asymmetric target of GPTAQ, 2504.02692, here for structures.)
Either end is worse than a mixture: docs/method.md has the figures.
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
from saap_edge.pruning.removal import least_squares
from saap_edge.pruning.score import SUBLAYERS
from saap_edge.pruning.surgery import PROJECTIONS, Kept, output_columns, output_projections

__all__ = ["MIX", "repair", "restored"]

MIX = 0.6  # share of the dense target


@contextmanager
def restored(model: Any) -> Iterator[None]:
    """Output projections are put back as they were at the end: several repairs can be tried on one model."""
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
    """Mend the dense `model` in place, layer by layer, for a cut to `kept`: removed columns become zero.

    `surgery.cut` of the result is the repaired pruned model.

    Raises SaapError where numbers on the way are not finite.

    Args:
        model: dense transformers causal LM, evaluation mode.
        kept: structures that stay, `[layer][kind]` ascending indices.
        windows: calibration token ids [n, window].
        mix: share of the dense target, 0 to 1. Families that norm a sublayer's output take the local target only,
            because there the residual is no linear function of the projection.
        bias: compensate with a bias as well (FLAP, 2312.11983; here part of the least squares).
        progress: called after every layer.
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
    """Carry the dense stream past a sublayer; returns what mends its output projection for the pruned one."""
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
    """Second moments of one projection's kept inputs (and the constant 1, for a bias) with the wanted outputs."""

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
        """Mend the projection, in place."""
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
