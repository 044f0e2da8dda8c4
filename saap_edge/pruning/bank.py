"""The bank: for every sublayer, the order its structures leave in and its repaired output projection at every width.

Removing inputs of an output projection y = W x costs, after the best repair of what stays, a known amount of loss.
With G = E[x x^T] and F = E[(dL/dy)^2] over calibration tokens (Fisher, diagonal), the loss of removing structure s is
    1/2 tr( sqrt(F) W_s [G^-1]_ss^-1 W_s^T sqrt(F) )          nats per token
(Optimal Brain Surgeon with a Kronecker-factored curvature; cf. The LLM Surgeon, 2312.17244). Structures leave greedily
in that order, G^-1 and W are updated after each step, so that what stays takes over what goes. Because the figure is a
loss, not a norm, it compares across layers. `obs` is the same with F = 1 and no updates (the layer's output error).

A bank serves every budget: another plan is another choice of widths from it, not another pruning.
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

STEPS = 256  # greedy steps a sublayer at most: wide FFNs lose several channels a step
FFN_WIDTHS = 16  # repaired widths kept of one FFN, evenly spaced on the grid


class Bank:
    """A bank on disk. Raises SaapError when it is missing or damaged.

    `costs[layer][kind]`: float64 [structures], the loss at which the greedy order removes each; sorting by it gives
    the order. `obs[layer][kind]`: the plain removal cost.
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
        """Widths there are repaired weights for: (kv groups, slots) or (channels,)."""
        with self._open(layer, sublayer) as file:
            return sorted(tuple(int(part) for part in name.split(".")) for name in file.keys())  # noqa: SIM118

    def kept(self, layer: int, widths: dict[str, int]) -> dict[str, np.ndarray]:
        """Structures that stay in a layer at these widths, ascending."""
        return {kind: costliest(self.costs[layer][kind], width) for kind, width in widths.items()}

    def weight(self, layer: int, sublayer: str, width: tuple[int, ...]) -> torch.Tensor:
        """Repaired output projection [hidden, kept inputs] at a width below dense."""
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
    """The `width` structures that stay, ascending indices: the costliest to remove."""
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
    """Build the bank of a dense model in `folder`, layer by layer; memory holds one layer's moments.

    Args:
        model: dense, evaluation mode; not changed.
        scores: for F, the output curvature.
        space: widths to offer.
        windows: calibration token ids [n, window].
        progress: called after every layer.

    Raises SaapError where numbers on the way are not finite.
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
    """Carry `states` past a sublayer; returns E[x x^T] of what its output projection sees, float64."""
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
    """(kind, greedy costs, plain costs) of the sublayer's kinds of structures."""
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
    """Loss at which each structure leaves, in nats per token where curvature is in nats^2; float64 [structures].

    Args:
        weight: [out, in]; gram: [in, in], E[x x^T]; curvature: [out], E[(dL/dy)^2].
        columns: int64 [structures, width], the input columns of each structure.
        greedy: remove one after the other, updating what stays; otherwise every structure's own cost, alone.

    Greedy costs never fall along the order of removal (a cheap structure behind a dear one takes its cost), so that
    sorting by them gives the order back. Raises SaapError where they are not finite.
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
        # Rising by a hair where the order's own costs fall: sorting then gives the order, ties included.
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
    """Take columns out, in place: the rest of W takes over what they gave, the rest of G^-1 forgets them."""
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
    """Repaired weights [hidden, kept inputs] at the offered widths below dense: name "kv.slots" or "channels"."""
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
    """Widths the bank keeps of a sublayer: all for attention, FFN_WIDTHS evenly spaced ones for an FFN."""
    if sublayer == "ffn":
        options = space.options(layer, "ffn")
        every = -(-len(options) // FFN_WIDTHS)
        return [(width,) for width in reversed(options[::-1][::every])]
    dense = shape_widths(space.shapes[layer])
    pairs = [(kv, slots) for kv in space.options(layer, "attention") for slots in space.options(layer, "slots")]
    return [pair for pair in pairs if space.fits(layer, dense | {"attention": pair[0], "slots": pair[1]})]
