"""The bank: for every sublayer, the order its structures leave in and its repaired output projection at many widths.

Removing inputs of an output projection y = W x costs a known amount of loss once the rest is repaired. With
G = E[x x^T] and F = E[(dL/dy)^2] over calibration tokens (F: the diagonal Fisher), the loss of removing structure s is
    1/2 tr( sqrt(F) W_s [G^-1]_ss^-1 W_s^T sqrt(F) )          nats per token
This is Optimal Brain Surgeon with a Kronecker-factored curvature (cf. The LLM Surgeon, arXiv 2312.17244). The cheapest
structure leaves first. G^-1 and W are updated after each removal, so that what stays takes over what went. The figure
is a loss, not a norm, so it can be compared between layers. `obs` has F = 1 and no updates: a layer's output error.

A bank serves every budget: another plan chooses other widths from it and needs no second pruning. docs/method.md
compares the orders.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from saap_edge.errors import SaapError
from saap_edge.model.stream import (
    attention_branch,
    ffn_branch,
    follow,
    layer_arguments,
    layer_inputs,
    require_finite_sums,
)
from saap_edge.pruning.repair import RIDGE, least_squares
from saap_edge.pruning.score import KINDS, SUBLAYERS, Scores
from saap_edge.pruning.space import Space, shape_widths
from saap_edge.pruning.surgery import PROJECTIONS, output_columns, output_projections

__all__ = ["Bank", "build_bank", "removal_costs"]

STEPS = 256  # most greedy steps of one sublayer: a wide FFN loses several channels in one step
FFN_WIDTHS = 16  # repaired widths stored for each FFN, evenly spaced on the grid


class Bank:
    """A bank on disk. Raises SaapError when it is missing or damaged.

    Attributes:
        costs: `[layer][kind]` float64 [structures], what the greedy order pays for each structure, in nats per token.
            Sorting by it gives the order.
        obs: `[layer][kind]` float64 [structures], the output error of removing each structure alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            document = json.loads((folder / "bank.json").read_text(encoding="utf-8"))
            with safe_open(str(folder / "costs.safetensors"), framework="np") as file:
                self.costs, self.obs = (
                    [{kind: file.get_tensor(f"{name}.{i}.{kind}") for kind in KINDS} for i in range(document["layers"])]
                    for name in ("costs", "obs")
                )
                if len(list(file.keys())) != 2 * len(KINDS) * len(self.costs):
                    raise ValueError(f"bank.json says {len(self.costs)} layers, costs.safetensors has others")
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise self._unreadable(error) from None

    def widths(self, layer: int, sublayer: str) -> list[tuple[int, ...]]:
        """Widths with stored repaired weights, ascending: (kv groups, slots) of attention, (channels,) of an FFN."""
        with self._open(layer, sublayer) as file:
            return sorted(tuple(int(part) for part in name.split(".")) for name in file.keys())  # noqa: SIM118

    def kept(self, layer: int, widths: dict[str, int]) -> dict[str, np.ndarray]:
        """Indices of the structures that stay in a layer at these widths, ascending, by kind."""
        return {kind: costliest(self.costs[layer][kind], width) for kind, width in widths.items()}

    def weight(self, layer: int, sublayer: str, width: tuple[int, ...]) -> torch.Tensor:
        """Repaired output projection [hidden, kept inputs] at one of `widths`."""
        with self._open(layer, sublayer) as file:
            weight: torch.Tensor = file.get_tensor(".".join(str(part) for part in width))
        return weight

    def _open(self, layer: int, sublayer: str) -> Any:
        try:
            return safe_open(str(self.folder / f"{sublayer}-{layer}.safetensors"), framework="pt")
        except (OSError, SafetensorError) as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> SaapError:
        return SaapError(f"'{self.folder}' holds no readable bank ({error}): run `saap-edge bank` first")


def costliest(costs: np.ndarray, width: int) -> np.ndarray:
    """Indices of the `width` structures that cost most to remove, ascending: these stay.

    >>> costliest(np.array([0.3, 0.1, 0.9, 0.2]), 2).tolist()
    [0, 2]
    """
    return np.sort(np.argsort(-costs, kind="stable")[:width])


@torch.no_grad()
def build_bank(
    model: Any,
    scores: Scores,
    space: Space,
    windows: torch.Tensor,
    folder: Path,
    progress: Callable[[], None] = lambda: None,
) -> Bank:
    """Build the bank of a dense model in `folder`, layer by layer. Memory holds the moments of one layer only.

    Args:
        model: the dense transformers model, in evaluation mode; it is not changed.
        scores: they hold F, the curvature at the outputs.
        space: the widths to store.
        windows: calibration token ids [n, window].
        progress: called after every layer.

    Raises SaapError when an intermediate result is not finite.
    """
    arguments, states = layer_arguments(model, windows), layer_inputs(model, windows)
    arrays: dict[str, torch.Tensor] = {}
    for index, (layer, keywords) in enumerate(zip(model.model.layers, arguments, strict=True)):
        follow(layer, states)
        branches = (attention_branch(layer, keywords), ffn_branch(layer))
        modules = output_projections(layer).values()
        for sublayer, branch, module in zip(SUBLAYERS, branches, modules, strict=True):
            gram = _advance(module, branch, states)
            require_finite_sums(gram, index, PROJECTIONS[sublayer])
            curvature = torch.from_numpy(scores.fisher[index][sublayer]).to(module.weight.device)
            for kind, costs, plain in _costs(scores, index, sublayer, module.weight, gram, curvature):
                arrays[f"costs.{index}.{kind}"], arrays[f"obs.{index}.{kind}"] = costs, plain
            chosen = {
                kind: arrays[f"costs.{index}.{kind}"].numpy() for kind in KINDS if f"costs.{index}.{kind}" in arrays
            }
            save_file(
                _repaired(layer, index, sublayer, module.weight, gram, chosen, space),
                folder / f"{sublayer}-{index}.safetensors",
            )
        progress()
    save_file(arrays, folder / "costs.safetensors")
    (folder / "bank.json").write_text(json.dumps({"layers": len(arguments), "windows": len(windows)}), encoding="utf-8")
    return Bank(folder)


def _advance(module: Any, branch: Callable[[torch.Tensor], torch.Tensor], states: list[torch.Tensor]) -> torch.Tensor:
    """Run a sublayer on `states`, in place; return E[x x^T] of its output projection's inputs, float64."""
    width = module.weight.shape[1]
    gram = torch.zeros(width, width, device=module.weight.device)
    rows = 0

    def collect(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal rows
        values = inputs[0].reshape(-1, width).float()
        gram.addmm_(values.T, values)
        rows += len(values)

    handle = module.register_forward_pre_hook(collect)
    try:
        for index, state in enumerate(states):
            states[index] = state + branch(state)
    finally:
        handle.remove()
    return gram.double() / rows


def _costs(
    scores: Scores, index: int, sublayer: str, weight: torch.Tensor, gram: torch.Tensor, curvature: torch.Tensor
) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """(kind, greedy costs, plain costs) for each kind of structure in the sublayer."""
    shape = scores.shapes[index]
    number = shape_widths(shape)
    if sublayer == "ffn":
        slices = {"ffn": torch.arange(shape.ffn)[:, None]}
    else:
        heads = torch.arange(weight.shape[1]).reshape(shape.kv_heads, number["slots"], -1)
        slices = {"attention": heads.flatten(1), "slots": heads.transpose(0, 1).flatten(1)}
    found = []
    for kind, columns in slices.items():
        greedy = removal_costs(weight, gram, curvature, columns)
        plain = removal_costs(weight, gram, torch.ones_like(curvature), columns, greedy=False)
        found.append((kind, greedy.cpu(), plain.cpu()))
    return found


def removal_costs(
    weight: torch.Tensor, gram: torch.Tensor, curvature: torch.Tensor, columns: torch.Tensor, greedy: bool = True
) -> torch.Tensor:
    """Loss of removing each structure, float64 [structures]; in nats per token if `curvature` is in nats^2.

    The formula stands at the top of this module.

    Args:
        weight: [out, in].
        gram: [in, in], E[x x^T].
        curvature: [out], E[(dL/dy)^2].
        columns: int64 [structures, width], the input columns of each structure.
        greedy: remove one structure after the other and update what stays; else the cost of removing each alone.

    Greedy costs never fall along the order of removal: a structure that would be cheaper than the one removed before it
    takes that one's cost. So sorting by them gives the order. Raises SaapError where costs are not finite.

    Two independent inputs of variance 1, with weights 1 and 3, cost w^2 / 2 each:

    >>> columns, one = torch.tensor([[0], [1]]), torch.ones(1)
    >>> removal_costs(torch.tensor([[1.0, 3.0]]), torch.eye(2).double(), one, columns).round(decimals=2).tolist()
    [0.5, 4.5]
    """
    columns = columns.to(weight.device)
    structures, width = columns.shape
    system = gram + RIDGE * gram.diagonal().mean().clamp_min(1e-30) * torch.eye(
        len(gram), dtype=gram.dtype, device=gram.device
    )
    inverse = torch.linalg.inv(system)
    left = weight.double() * (0.5 * curvature.double()).sqrt()[:, None]
    costs = torch.zeros(structures, dtype=torch.float64, device=weight.device)
    alive = torch.ones(structures, dtype=torch.bool, device=weight.device)
    batch = max(1, structures // STEPS) if width == 1 else 1
    reached = 0.0
    while bool(alive.any()):
        now = _single_costs(left, inverse, columns)
        if not bool(torch.isfinite(now).all()):
            raise SaapError("costs of removal that are no finite numbers: scores or activations are too large")
        if not greedy:
            return now
        now[~alive] = torch.inf
        order = torch.argsort(now, stable=True)[: min(batch, int(alive.sum()))]
        # Each cost is at least a hair above the one before it, so that sorting gives the order, ties included.
        for structure in order.tolist():
            reached = max(reached * (1 + 1e-12) + 1e-300, float(now[structure]))
            costs[structure] = reached
        alive[order] = False
        if bool(alive.any()):
            _remove(left, inverse, columns[order].flatten())
    return costs


def _single_costs(left: torch.Tensor, inverse: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    if columns.shape[1] == 1:
        return left.square().sum(0)[columns[:, 0]] / inverse.diagonal()[columns[:, 0]].clamp_min(1e-30)
    blocks = inverse[columns[:, :, None], columns[:, None, :]]
    parts = left[:, columns].transpose(0, 1)  # [structures, out, width]
    lost: torch.Tensor = ((parts @ torch.linalg.inv(blocks)) * parts).sum(dim=(1, 2))
    return lost


def _remove(left: torch.Tensor, inverse: torch.Tensor, gone: torch.Tensor) -> None:
    """Remove columns, in place: the rest of W takes over what they contributed, and G^-1 becomes that of the rest."""
    block = torch.linalg.inv(inverse[gone][:, gone])
    rows = inverse[gone].clone()
    left -= left[:, gone] @ block @ rows
    inverse -= rows.T @ block @ rows
    left[:, gone] = 0
    inverse[gone] = 0
    inverse[:, gone] = 0
    inverse[gone, gone] = 1


def _repaired(
    layer: Any,
    index: int,
    sublayer: str,
    weight: torch.Tensor,
    gram: torch.Tensor,
    costs: dict[str, np.ndarray],
    space: Space,
) -> dict[str, torch.Tensor]:
    """Repaired weights [hidden, kept inputs] at each stored width below dense, named "kv.slots" or "channels"."""
    dense = shape_widths(space.shapes[index])
    found = {}
    for width in offered(space, index, sublayer):
        named = dict(zip(("attention", "slots") if sublayer == "attention" else ("ffn",), width, strict=True))
        kinds = {kind: costliest(costs[kind], named.get(kind, dense[kind])) for kind in costs}
        columns = output_columns(layer, sublayer, kinds).to(weight.device)
        if 0 < len(columns) < weight.shape[1]:
            inner, cross = gram[columns][:, columns], weight.double() @ gram[:, columns]
            found[".".join(map(str, width))] = least_squares(inner, cross, weight[:, columns]).cpu()
    return found


def offered(space: Space, layer: int, sublayer: str) -> list[tuple[int, ...]]:
    """Widths that the bank stores for a sublayer: all of attention, FFN_WIDTHS evenly spaced ones of an FFN."""
    if sublayer == "ffn":
        options = space.options(layer, "ffn")
        every = -(-len(options) // FFN_WIDTHS)
        return [(width,) for width in reversed(options[::-1][::every])]
    dense = shape_widths(space.shapes[layer])
    pairs = [(kv, slots) for kv in space.options(layer, "attention") for slots in space.options(layer, "slots")]
    return [pair for pair in pairs if space.fits(layer, dense | {"attention": pair[0], "slots": pair[1]})]
