"""Repair: least-squares update of `o_proj` and `down_proj` after some of their inputs are gone.

For a projection y = W x + b whose inputs are cut to `kept`, the weights that come closest to a target output t have a
closed form, W' = T X^T (X X^T + ridge)^-1. It needs no gradient and no training. Layers are repaired in order, each on
the activations that the repaired layers before it produce. The target is a mixture of two:

  local   the dense projection's output on these same activations: repairs the cut of this layer alone
  dense   what brings the residual stream back to the dense model's: repairs the errors of earlier layers too

(GPTQ-style methods use the first; the second is the asymmetric target of GPTAQ, 2504.02692, here for structures.)
Either end is worse than a mixture: docs/method.md has the figures.

Several cuts of one model are mended side by side: the dense model's states are carried once for all of them, and each
sublayer runs once for each cut, because what a mended projection gives follows from the inputs it was mended on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from saap_edge.model.arithmetic import Precision, multiplied
from saap_edge.model.head import states_perplexity
from saap_edge.model.perplexity import Perplexity
from saap_edge.model.stream import (
    Branch,
    added_by,
    attention_branch,
    ffn_branch,
    follow,
    layer_arguments,
    layer_inputs,
    output_norm,
    require_finite_sums,
)
from saap_edge.pruning.removal import least_squares
from saap_edge.pruning.score import SUBLAYERS
from saap_edge.pruning.surgery import Kept, output_columns, output_names, output_projections

__all__ = ["MIX", "Variant", "judge_variants", "repair", "restored"]

MIX = 0.6  # share of the dense target


@dataclass(frozen=True)
class Variant:
    """A cut of the dense model, and how it is mended.

    Attributes:
        kept: structures that stay, `[layer][kind]` ascending indices.
        mix: share of the dense target, 0 to 1; None mends nothing. Families that norm a sublayer's output take the
            local target only, because there the residual is no linear function of the projection.
        bias: compensate with a bias as well (FLAP, 2312.11983; here part of the least squares).
    """

    kept: Kept
    mix: float | None = MIX
    bias: bool = False


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


def repair(
    model: Any,
    kept: Kept,
    windows: torch.Tensor,
    mix: float = MIX,
    bias: bool = False,
    progress: Callable[[], None] = lambda: None,
    precision: Precision = "float32",
) -> None:
    """Repair the dense `model` in place, layer by layer, for a cut to `kept`. Removed columns become zero.

    `surgery.cut` of the result is the repaired pruned model.

    Args:
        model: dense transformers causal LM, evaluation mode.
        kept, mix, bias: as in `Variant`.
        windows: calibration token ids [n, window].
        progress: called after every layer.
        precision: of the passes over the text (arithmetic.py).

    Raises SaapError where numbers on the way are not finite.
    """
    variant = Variant(kept, mix, bias)
    judge_variants(model, [variant], windows, windows[:0], store=0, progress=progress, precision=precision)


@torch.no_grad()
def judge_variants(
    model: Any,
    variants: Sequence[Variant],
    windows: torch.Tensor,
    heldout: torch.Tensor,
    *,
    store: int | None = None,
    progress: Callable[[], None] = lambda: None,
    precision: Precision = "float32",
) -> list[Perplexity]:
    """Perplexity on held-out text of the dense model and of each variant, mended, in that order; [] without such text.

    Memory holds the states of all texts at one depth, for the dense model and for every variant, and of one variant
    what one projection takes.

    Args:
        model: dense transformers causal LM, evaluation mode.
        windows, heldout: token ids [n, window] of one window; what weights are mended on, and what is judged.
        store: the variant whose weights the model is left with; None leaves it dense.
        progress: called after every layer.
        precision: of the passes over the text (arithmetic.py).

    Raises SaapError where numbers on the way are not finite.
    """
    arguments = layer_arguments(model, windows if len(windows) else heldout)
    dense = _States(layer_inputs(model, windows), layer_inputs(model, heldout))
    project = multiplied(precision, torch.nn.functional.linear)
    streams: list[_States | None] = [None for _ in variants]  # none before a variant's first cut: it is the dense one
    for index, (layer, keywords) in enumerate(zip(model.model.layers, arguments, strict=True)):
        branches = (attention_branch(layer, keywords), ffn_branch(layer, keywords))
        for states in (dense, *streams):
            if states is not None:
                states.follow(layer)
        modules = output_projections(layer)
        for sublayer, branch in zip(SUBLAYERS, branches, strict=True):
            run = multiplied(precision, branch)
            if sublayer not in modules:  # a convolution, of which nothing goes, or nothing
                for states in (dense, *streams):
                    if states is not None:
                        states.advance(run)
                continue
            module = modules[sublayer]
            added = added_by(layer, sublayer, keywords)
            step = _Step(index, layer, sublayer, run, added, project, module, dense.copy(), dense)
            dense.advance(step.branch)
            stored = None
            for number, variant in enumerate(variants):
                streams[number], mended = step.taken(variant, streams[number])
                stored = mended if number == store else stored
            if stored is not None:
                stored.put(module)
        progress()
    if not len(heldout):
        return []
    last = multiplied(precision, lambda states: states_perplexity(model, states.heldout, heldout))
    return [last(dense if stream is None else stream) for stream in (dense, *streams)]


class _States:
    """Hidden states of both texts at one depth, [<= BATCH, window, hidden] a chunk."""

    def __init__(self, calibration: list[torch.Tensor], heldout: list[torch.Tensor]) -> None:
        self.calibration, self.heldout = calibration, heldout

    def copy(self) -> _States:
        return _States(list(self.calibration), list(self.heldout))

    def follow(self, layer: Any) -> None:
        follow(layer, self.calibration)
        follow(layer, self.heldout)

    def advance(self, branch: Branch) -> None:
        for states in (self.calibration, self.heldout):
            states[:] = [state + branch(state) for state in states]


@dataclass(frozen=True)
class _Mended:
    """A projection's weights [out, kept inputs] and bias after a cut to `columns`."""

    columns: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None

    def put(self, module: Any) -> None:
        """Give them to the dense projection: removed columns are zero."""
        module.weight.zero_()
        module.weight.index_copy_(1, self.columns, self.weight)
        if self.bias is not None:
            module.bias = torch.nn.Parameter(self.bias.contiguous(), requires_grad=False)

    @contextmanager
    def inside(self, module: Any) -> Iterator[None]:
        before, bias = module.weight.detach().clone(), module.bias
        self.put(module)
        try:
            yield
        finally:
            module.weight.copy_(before)
            module.bias = bias


@dataclass(frozen=True)
class _Step:
    """One sublayer: what went into it, and what came out, in the dense model."""

    index: int
    layer: Any
    sublayer: str
    branch: Branch
    added: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    project: Callable[..., torch.Tensor]
    module: Any
    before: _States
    after: _States

    def taken(self, variant: Variant, states: _States | None) -> tuple[_States | None, _Mended | None]:
        """The variant's states behind this sublayer (None: still the dense ones), and its projection."""
        columns = output_columns(self.layer, self.sublayer, variant.kept[self.index]).to(self.module.weight.device)
        if states is None and len(columns) == self.module.weight.shape[1]:
            return None, None
        if states is None:
            states = self.before.copy()
            if variant.mix is None:
                states.calibration = []  # never looked at, and dense states would stay in memory
        if variant.mix is None:
            mended = _Mended(columns, self.module.weight.index_select(1, columns), self.module.bias)
        else:
            mended = self._mend(variant, columns, states)
        with mended.inside(self.module):
            states.heldout[:] = [state + self.branch(state) for state in states.heldout]
        return states, mended

    def _mend(self, variant: Variant, columns: torch.Tensor, states: _States) -> _Mended:
        """Solve for the projection on the variant's calibration states, and carry these past it."""
        assert variant.mix is not None
        mix = variant.mix if output_norm(self.layer, self.sublayer) is None else 0.0
        moments, inputs = _Moments(self.module, columns, variant.bias), []
        rests, width = [], self.module.weight.shape[0]
        for state, dense in zip(states.calibration, self.after.calibration, strict=True):
            with moments.watching() as seen:
                rests.append(self.branch(state)[..., width:].clone())
            local = seen.output.float()
            inputs.append(moments.add(seen.inputs, (1 - mix) * local + mix * (dense - state) if mix else local))
        for sums in (moments.gram, moments.cross):
            require_finite_sums(sums, self.index, output_names(self.layer)[self.sublayer])
        mended = moments.solve()
        for index, rows in enumerate(inputs):
            state = states.calibration[index]
            output = self.project(rows.to(mended.weight.dtype), mended.weight, mended.bias)
            output = output.reshape(*state.shape[:-1], width)
            states.calibration[index] = state + self.added(state, output, rests[index])
        return mended


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

    def add(self, inputs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Add one chunk; returns its kept inputs [rows, kept] as they came."""
        kept = inputs.reshape(-1, inputs.shape[-1]).index_select(1, self.columns)
        rows = kept.float()
        if self.fits_bias:
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        self.gram.addmm_(rows.T, rows)
        self.cross.addmm_(wanted.reshape(len(rows), -1).float().T, rows)
        return kept

    def solve(self) -> _Mended:
        """The mended projection."""
        module = self.module
        start = module.weight.index_select(1, self.columns)
        if not len(self.columns):
            return _Mended(self.columns, start, module.bias)
        if not self.fits_bias:
            return _Mended(self.columns, least_squares(self.gram, self.cross, start), None)
        old = module.bias if module.bias is not None else torch.zeros_like(start[:, 0])
        solved = least_squares(self.gram, self.cross, torch.cat([start, old[:, None].to(start.dtype)], dim=1))
        return _Mended(self.columns, solved[:, :-1].contiguous(), solved[:, -1].contiguous())
