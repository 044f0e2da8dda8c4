"""The first codes of a model's blocks. Better codes than plain rounding fill the same blocks, so files do not grow.

  nearest   what the format's own quantiser gives; it looks at weights only
  weighted  scales of least error on calibration inputs: a search over scales, with the mean squared inputs as weights,
            as llama.cpp does with an importance matrix
  gptq      the same scales; then column by column, the columns not yet rounded compensate for each rounding's error
            (arXiv 2210.17323)

Each works on one layer at a time, on the inputs that the layers before it, already in blocks, produce.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch

from saap_edge.errors import SaapError
from saap_edge.families import Family
from saap_edge.model.adapters import put
from saap_edge.model.blocks import BLOCK, BlockFormat, codes_at, grouped, nearest, rounded
from saap_edge.model.stream import (
    attention_branch,
    ffn_branch,
    follow,
    layer_arguments,
    layer_inputs,
    remembering,
    require_finite_sums,
)
from saap_edge.recovery.quantiser import GroupLinear, Start

__all__ = ["Method", "gptq", "in_blocks", "weighted"]

Method = Literal["nearest", "weighted", "gptq"]
DAMPINGS = (0.01, 0.1, 1.0)  # shares of the mean diagonal: GPTQ's own; more if the matrix is not positive definite then
SHRINK = torch.linspace(0.7, 1.15, 19)  # scales tried, as multiples of the nearest one


def weighted(
    weight: torch.Tensor, importance: torch.Tensor, format: BlockFormat, group: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and offsets, float32 [out, groups], of least weighted squared error.

    Args:
        weight: float32 [out, in], `in` a multiple of 32.
        importance: float32 [in], mean square of each input.
        group: inputs that share a scale, 32 or a multiple.

    >>> from saap_edge.model.blocks import BLOCK_FORMATS
    >>> weight = torch.tensor([[-8.0, 7.0] * 16])  # as codes 0 and 15 at scale 1: no better scale
    >>> [figures.tolist() for figures in weighted(weight, torch.ones(32), BLOCK_FORMATS["q4_0"], 32)]
    [[[1.0]], [[8.0]]]
    """
    start, offsets = nearest(weight, format, group)
    cost = grouped(importance[None], group)
    blocks = grouped(weight, group)
    best, best_offsets, lowest = start, offsets, torch.full_like(start, torch.inf)
    for shrink in SHRINK.to(weight.device):
        scales = start * shrink
        centre = offsets
        if format.offset == "minimum":  # shrink towards the middle of the block's range
            centre = offsets + (start - scales) * format.highest / 2
        codes = grouped(codes_at(weight, scales, centre, format, group), group)
        if format.offset == "minimum":
            scales, centre = _fit_line(blocks, codes, cost, scales, centre)
            values = scales[..., None] * codes + centre[..., None]
        else:
            steps = codes - centre[..., None]
            scales = _fit_scale(blocks, steps, cost, scales)
            values = scales[..., None] * steps
        error = (cost * (values - blocks).square()).sum(-1)
        better = error < lowest
        best, best_offsets = torch.where(better, scales, best), torch.where(better, centre, best_offsets)
        lowest = torch.where(better, error, lowest)
    return best.half().float(), best_offsets.half().float()


def _fit_scale(blocks: torch.Tensor, steps: torch.Tensor, cost: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
    """The scale of least weighted error for given codes: a least-squares fit for every block."""
    below = (cost * steps.square()).sum(-1)
    return torch.where(below > 0, (cost * steps * blocks).sum(-1) / below.clamp_min(1e-30), otherwise)


def _fit_line(
    blocks: torch.Tensor, codes: torch.Tensor, cost: torch.Tensor, scales: torch.Tensor, minimums: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and minimum of least weighted error for given codes."""
    total = cost.sum(-1).clamp_min(1e-30)
    mean_code, mean = (cost * codes).sum(-1) / total, (cost * blocks).sum(-1) / total
    spread = (cost * (codes - mean_code[..., None]).square()).sum(-1)
    together = (cost * (codes - mean_code[..., None]) * (blocks - mean[..., None])).sum(-1)
    slope = together / spread.clamp_min(1e-30)
    fits = (spread > 0) & (slope > 0)
    return torch.where(fits, slope, scales), torch.where(fits, mean - slope * mean_code, minimums)


def gptq(weight: torch.Tensor, gram: torch.Tensor, format: BlockFormat, group: int) -> Start:
    """Round `weight` float32 [out, in] by GPTQ (arXiv 2210.17323), given the Gram matrix [in, in] of its inputs.

    The columns not yet rounded compensate for each rounding's error. The returned weight holds every column as it was
    when its turn came. Rounding it gives the codes found here, and training still sees the weight before rounding.
    Raises SaapError when `gram` has no Cholesky factor even with the most damping.

    Where inputs are independent there is nothing to compensate for:

    >>> from saap_edge.model.blocks import BLOCK_FORMATS
    >>> weight = torch.tensor([[-8.0, 7.0] * 16])
    >>> bool((gptq(weight, torch.eye(32), BLOCK_FORMATS["q4_0"], 32).weight == weight).all())
    True
    """
    dead = gram.diagonal() == 0
    weight = torch.where(dead, 0, weight).clone()
    inverse, importance = _inverse_factor(gram, dead)
    kept, parts = torch.empty_like(weight), []
    for first in range(0, weight.shape[1], group):
        columns = slice(first, min(first + group, weight.shape[1]))
        scales, offsets = weighted(weight[:, columns], importance[columns], format, group)
        parts.append((scales, offsets))
        errors = torch.empty_like(weight[:, columns])
        for column in range(columns.start, columns.stop):
            kept[:, column] = weight[:, column]
            value = _rounded(weight[:, column], scales[:, 0], offsets[:, 0], format)
            error = (weight[:, column] - value) / inverse[column, column]
            weight[:, column : columns.stop] -= error[:, None] * inverse[column, column : columns.stop]
            errors[:, column - columns.start] = error
        weight[:, columns.stop :] -= errors @ inverse[columns, columns.stop :]
    scales, offsets = (torch.cat(found, dim=1) for found in zip(*parts, strict=True))
    return Start(kept, scales, offsets)


def _inverse_factor(gram: torch.Tensor, dead: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Upper Cholesky factor of the damped matrix's inverse, and the damped diagonal.

    A matrix of 8192 inputs takes 256 MiB, so as few as possible exist at a time.
    """
    for damping in DAMPINGS:
        damped = gram.clone()
        diagonal = damped.diagonal()
        diagonal += dead.to(gram.dtype)
        diagonal += damping * diagonal.mean()
        importance = diagonal.clone()
        del diagonal  # a view: it would keep the matrix
        damped, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            damped = torch.cholesky_inverse(damped)
            damped, failed = torch.linalg.cholesky_ex(damped, upper=True)
        # torch reports no failure for figures that are not finite.
        if not failed and bool(torch.isfinite(damped.diagonal()).all()):
            return damped, importance
    raise SaapError("GPTQ: what should be a Gram matrix has no Cholesky factor")


def _rounded(column: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor, format: BlockFormat) -> torch.Tensor:
    """The values of one column after rounding."""
    codes = rounded(column, scales, offsets, format)
    return scales * codes + offsets if format.offset == "minimum" else scales * (codes - offsets)


@torch.no_grad()
def in_blocks(
    model: Any,
    family: Family,
    format: BlockFormat,
    *,
    group: int = BLOCK,
    rank: int = 1,
    through: bool = False,
    method: Method = "nearest",
    windows: torch.Tensor | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Any:
    """Put a model's projections into blocks, in place, layer by layer, and freeze all but their adapters.

    Args:
        group, rank, through: as in `GroupLinear`.
        method: how the first codes are found.
        windows: token ids [n, window], whose activations `weighted` and `gptq` use.
        progress: called after every layer.

    The passes over `windows` are in float32, whatever training is in: from inputs in bfloat16, GPTQ's codes of one
    model were worse than plain rounding, and from the same inputs in float32 better (docs/recovery.md).

    Returns the model. Raises SaapError that names the projection whose inputs are not finite.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    looked_at = windows if method != "nearest" else None
    states = [] if looked_at is None else layer_inputs(model, looked_at)
    arguments = [{}] * len(model.model.layers) if looked_at is None else layer_arguments(model, looked_at)
    for index, (layer, keywords) in enumerate(zip(model.model.layers, arguments, strict=True)):
        follow(layer, states)
        grams = _grams(layer, family, states, keywords) if states else {}
        for name in family.linears(layer):
            linear = layer.get_submodule(name)
            gram = grams.pop(name, None)
            if gram is not None:
                require_finite_sums(gram, index, name)
            start = _start(linear.weight, gram, format, group, method)
            del gram
            put(layer, name, GroupLinear(linear, start, format, group, rank, through))
        _advance(layer, states, keywords)
        progress()
    return model


def _start(weight: torch.Tensor, gram: torch.Tensor | None, format: BlockFormat, group: int, method: Method) -> Start:
    weight = torch.nn.functional.pad(weight.detach().float(), (0, -weight.shape[1] % BLOCK))
    if gram is None:
        return Start(weight, *nearest(weight, format, group))
    pad = weight.shape[1] - len(gram)
    gram = torch.nn.functional.pad(gram, (0, pad, 0, pad)) if pad else gram
    if method == "weighted":
        return Start(weight, *weighted(weight, gram.diagonal(), format, group))
    return gptq(weight, gram, format, group)


def _grams(layer: Any, family: Family, states: list[torch.Tensor], keywords: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Mean outer product x x^T of the inputs of every projection of a layer, float32 [in, in], by name."""
    grams: dict[str, torch.Tensor] = {}
    same: dict[str, str] = {}  # the projection that takes the very tensor that this one takes, and took it first
    handles, count = [], sum(state[..., 0].numel() for state in states)
    last: list[Any] = [None, ""]

    def add(module: Any, inputs: tuple[torch.Tensor, ...], name: str) -> None:
        if inputs[0] is last[0]:
            same[name] = last[1]
            return
        last[:] = inputs[0], name
        rows = inputs[0].flatten(0, -2).float()
        gram = grams.setdefault(name, torch.zeros(rows.shape[1], rows.shape[1], device=rows.device))
        gram.addmm_(rows.T, rows, alpha=1 / count)

    for name in family.linears(layer):
        hook = partial(add, name=name)
        handles.append(layer.get_submodule(name).register_forward_pre_hook(hook))
    _advance(layer, list(states), keywords)
    for handle in handles:
        handle.remove()
    return grams | {name: grams[first] for name, first in same.items()}


def _advance(layer: Any, states: list[torch.Tensor], keywords: dict[str, Any]) -> None:
    """Run a layer on `states`, in place. A pruned layer may lack a sublayer."""
    mixes = layer.self_attn is not None or remembering(layer) is not None
    branches = attention_branch(layer, keywords), ffn_branch(layer, keywords)
    for there, branch in zip((mixes, layer.mlp is not None), branches, strict=True):
        if there:
            states[:] = [state + branch(state) for state in states]
