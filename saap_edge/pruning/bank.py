"""The bank: for every sublayer, the order its structures leave in and its repaired output projection at many widths.

Removing inputs of an output projection y = W x costs, after the best repair of what stays, a known amount of loss
(removal.py). Structures leave greedily in the order of that cost, and what stays takes over what goes. Because the
figure is a loss, not a norm, it compares across layers. `obs` is the same with F = 1 and no updates (the layer's output
error).

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
from saap_edge.machine.memory import give_back
from saap_edge.model.arithmetic import Precision, multiplied
from saap_edge.model.stream import (
    attention_branch,
    ffn_branch,
    follow,
    layer_arguments,
    layer_inputs,
    require_finite_sums,
)
from saap_edge.pruning.removal import least_squares, nested_repairs, removal_costs, removal_inverse
from saap_edge.pruning.score import KINDS, SUBLAYERS, Scores
from saap_edge.pruning.space import Space, shape_widths
from saap_edge.pruning.surgery import output_columns, output_names, output_projections

__all__ = ["Bank", "build_bank", "offered"]

_NONE = torch.zeros(0, dtype=torch.float64)  # figures of the structures that a lacking sublayer has
FFN_WIDTHS = 16  # repaired widths kept of one FFN, evenly spaced on the grid


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
    precision: Precision = "float32",
) -> Bank:
    """Build the bank of a dense model in `folder`, layer by layer. Memory holds the moments of one layer only.

    Args:
        model: the dense transformers model, in evaluation mode; it is not changed.
        scores: they hold F, the curvature at the outputs.
        space: the widths to store.
        windows: calibration token ids [n, window].
        progress: called after every layer.
        precision: of the passes over the text (model/arithmetic.py).

    Raises SaapError when an intermediate result is not finite.
    """
    arguments, states = layer_arguments(model, windows), layer_inputs(model, windows)
    arrays: dict[str, torch.Tensor] = {}
    for index, (layer, keywords) in enumerate(zip(model.model.layers, arguments, strict=True)):
        follow(layer, states)
        branches = (attention_branch(layer, keywords), ffn_branch(layer, keywords))
        modules = output_projections(layer)
        for sublayer, branch in zip(SUBLAYERS, branches, strict=True):
            run = multiplied(precision, branch)
            if sublayer not in modules:  # a convolution, or nothing
                states[:] = [state + run(state) for state in states]
                lacking = [kind for kind in KINDS if (kind == "ffn") == (sublayer == "ffn")]
                arrays |= {f"{name}.{index}.{kind}": _NONE for name in ("costs", "obs") for kind in lacking}
                continue
            module = modules[sublayer]
            gram = _advance(module, run, states)
            require_finite_sums(gram, index, output_names(layer)[sublayer])
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
        give_back()
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
    found, inverse = [], removal_inverse(gram)
    for kind, columns in slices.items():
        greedy = removal_costs(weight, inverse, curvature, columns)
        plain = removal_costs(weight, inverse, torch.ones_like(curvature), columns, greedy=False)
        found.append((kind, greedy.cpu(), plain.cpu()))
    return found


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
    widths = offered(space, index, sublayer)
    if sublayer == "ffn":
        return _repaired_channels(weight, gram, costs["ffn"], [width for (width,) in widths])
    dense = shape_widths(space.shapes[index])
    found = {}
    for width in widths:
        named = dict(zip(("attention", "slots"), width, strict=True))
        kinds = {kind: costliest(costs[kind], named.get(kind, dense[kind])) for kind in costs}
        columns = output_columns(layer, sublayer, kinds).to(weight.device)
        if 0 < len(columns) < weight.shape[1]:
            inner, cross = gram[columns][:, columns], weight.double() @ gram[:, columns]
            found[".".join(map(str, width))] = least_squares(inner, cross, weight[:, columns]).cpu()
    return found


def _repaired_channels(
    weight: torch.Tensor, gram: torch.Tensor, costs: np.ndarray, widths: list[int]
) -> dict[str, torch.Tensor]:
    """The same of an FFN, where every width keeps what the next narrower one keeps, and some channels more."""
    order = torch.from_numpy(np.argsort(-costs, kind="stable")).to(weight.device)
    below = [width for width in widths if 0 < width < weight.shape[1]]
    return {
        str(width): repaired[:, torch.argsort(order[:width])].cpu()  # columns ascending, as `costliest` gives them
        for width, repaired in nested_repairs(weight, gram, order, below)
    }


def offered(space: Space, layer: int, sublayer: str) -> list[tuple[int, ...]]:
    """Widths that the bank stores for a sublayer: all of attention, FFN_WIDTHS evenly spaced ones of an FFN."""
    if sublayer == "ffn":
        options = space.options(layer, "ffn")
        every = -(-len(options) // FFN_WIDTHS)
        return [(width,) for width in reversed(options[::-1][::every])]
    dense = shape_widths(space.shapes[layer])
    pairs = [(kv, slots) for kv in space.options(layer, "attention") for slots in space.options(layer, "slots")]
    return [pair for pair in pairs if space.fits(layer, dense | {"attention": pair[0], "slots": pair[1]})]
