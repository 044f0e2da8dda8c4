"""Surgery: copy the slices that stay into a narrower model. Nothing is masked; what goes is gone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from saap_edge.families import Coupling
from saap_edge.model.folder import build_pruned, spec_of
from saap_edge.model.spec import LayerShape
from saap_edge.prune.score import KINDS

__all__ = ["Kept", "cut", "expand", "zero_removed"]

Kept = list[dict[str, np.ndarray]]


def cut(dense: Any, kept: Kept) -> Any:
    """A pruned copy of `dense` that holds only the structures in `kept`, `[layer][kind]` ascending indices.

    Its logits equal the dense model's with the missing structures zeroed. Returns a transformers model.
    """
    spec = spec_of(dense)
    group = spec.layers[0].heads // spec.layers[0].kv_heads
    shapes = [LayerShape(len(k["attention"]) * group, len(k["attention"]), len(k["ffn"])) for k in kept]
    pruned = build_pruned(dense, shapes)
    with torch.no_grad():
        for old, new, kinds in zip(dense.model.layers, pruned.model.layers, kept, strict=True):
            for kind, coupling in zip(KINDS, (spec.family.attention, spec.family.ffn), strict=True):
                _cut_coupling(old, new, coupling, kinds[kind])
    return pruned


def _cut_coupling(old: Any, new: Any, coupling: Coupling, indices: np.ndarray) -> None:
    structures = old.get_submodule(coupling.rows[-1]).weight.shape[0]
    if coupling.kind == "kv_group":
        structures = old.self_attn.v_proj.weight.shape[0] // old.self_attn.head_dim
    for name in (*coupling.rows, *coupling.columns):
        source, target = old.get_submodule(name), new.get_submodule(name)
        columns = name in coupling.columns
        axis = 1 if columns else 0
        index = expand(indices, source.weight.shape[axis] // structures).to(source.weight.device)
        target.weight.copy_(source.weight.index_select(axis, index))
        if source.bias is not None:
            target.bias.copy_(source.bias if columns else source.bias[index])


def expand(indices: np.ndarray, width: int) -> torch.Tensor:
    """Structure indices to consecutive rows: structure j owns rows j*width .. (j+1)*width."""
    return (torch.from_numpy(indices)[:, None] * width + torch.arange(width)).flatten()


@torch.no_grad()
def zero_removed(dense: Any, kept: Kept) -> None:
    """Zero, in place, all weights and biases of the structures `kept` leaves out: the definition that `cut` meets."""
    spec = spec_of(dense)
    for layer, shape, kinds in zip(dense.model.layers, spec.layers, kept, strict=True):
        counts = {"attention": shape.kv_heads, "ffn": shape.ffn}
        for kind, coupling in zip(KINDS, (spec.family.attention, spec.family.ffn), strict=True):
            gone = np.setdiff1d(np.arange(counts[kind]), kinds[kind])
            for name in coupling.rows:
                module = layer.get_submodule(name)
                rows = expand(gone, module.weight.shape[0] // counts[kind])
                module.weight[rows] = 0
                if module.bias is not None:
                    module.bias[rows] = 0
            for name in coupling.columns:
                module = layer.get_submodule(name)
                module.weight[:, expand(gone, module.weight.shape[1] // counts[kind])] = 0
