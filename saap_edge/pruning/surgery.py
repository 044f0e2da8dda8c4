"""Surgery: copy the slices that stay into a narrower model. Nothing is masked; what goes is gone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from saap_edge.errors import SaapError
from saap_edge.families import Coupling
from saap_edge.families.base import FFN_CHANNEL, KEY_HEAD, KV_GROUP
from saap_edge.model.folder import build_pruned, spec_of
from saap_edge.model.spec import LayerShape, mixed_as

__all__ = ["Kept", "cut", "kept_shapes", "output_columns", "output_names", "output_projections", "zero_removed"]

# [layer][kind] ascending indices of what stays: kv groups, query slots (r-th query head of every kv group), channels.
Kept = list[dict[str, np.ndarray]]


def kept_shapes(kept: Kept) -> list[LayerShape]:
    """Widths of the layers that `kept` leaves.

    >>> kept_shapes([{"attention": np.array([1]), "slots": np.array([0, 1]), "ffn": np.arange(64)}])
    [LayerShape(heads=2, kv_heads=1, ffn=64)]
    """
    return [
        LayerShape(len(kinds["attention"]) * len(kinds["slots"]), len(kinds["attention"]), len(kinds["ffn"]))
        for kinds in kept
    ]


def cut(dense: Any, kept: Kept) -> Any:
    """A pruned copy of `dense` that holds only the structures in `kept`.

    Its logits equal those of the dense model with the missing structures zeroed (`zero_removed`). A layer of which
    nothing is kept is left out. Returns a transformers model. Raises SaapError when nothing at all is kept, or when a
    whole sublayer goes whose output projection has a bias.
    """
    spec = spec_of(dense)
    shapes = mixed_as(kept_shapes(kept), spec.layers)
    pruned = build_pruned(dense, shapes)
    stay = [index for index, shape in enumerate(shapes) if not shape.gone]
    with torch.no_grad():
        for index, kinds in enumerate(kept):
            old = dense.model.layers[index]
            new = pruned.model.layers[stay.index(index)] if index in stay else None
            staying = {name for _, name in spec.family.projections(new)} if new else set()
            for coupling, name in spec.family.projections(old):
                if name in staying:
                    _copy(old, new, name, coupling, kinds)
                    _copy_beside(old, new, coupling, kinds)
                elif name in coupling.columns and old.get_submodule(name).bias is not None:
                    raise SaapError(f"layer {index}: {name} has a bias, so the sublayer cannot be removed whole")
    return pruned


def _copy(old: Any, new: Any, name: str, coupling: Coupling, kinds: dict[str, np.ndarray]) -> None:
    source, target = old.get_submodule(name), new.get_submodule(name)
    columns = name in coupling.columns
    index = _slices(old, name, source.weight.shape[1 if columns else 0], coupling, kinds).to(source.weight.device)
    target.weight.copy_(source.weight.index_select(1 if columns else 0, index))
    if source.bias is not None:
        target.bias.copy_(source.bias if columns else source.bias[index])
    elif target.bias is not None:
        target.bias.zero_()  # the model's class has one because repair gave other layers one


def _copy_beside(old: Any, new: Any, coupling: Coupling, kinds: dict[str, np.ndarray]) -> None:
    for name in coupling.beside:
        source = old.get_parameter(name)
        index = _slices(old, name.removesuffix(".weight"), len(source), coupling, kinds).to(source.device)
        new.get_parameter(name).copy_(source.index_select(0, index))


def _slices(layer: Any, name: str, size: int, coupling: Coupling, kinds: dict[str, np.ndarray]) -> torch.Tensor:
    """Indices of the rows or columns that stay, on an axis of `size` of the module or parameter `name`."""
    if coupling.kind == "ffn":
        return torch.from_numpy(kinds["ffn"])
    groups, slots = _heads(layer, coupling)
    kept = np.zeros(1, dtype=np.int64) if name in coupling.shared or slots == 1 else kinds["slots"]
    slots = 1 if name in coupling.shared else slots
    width = size // groups // slots
    heads = (kinds["attention"][:, None] * slots + kept).flatten()
    return torch.from_numpy((heads[:, None] * width + np.arange(width)).flatten())


def _heads(layer: Any, coupling: Coupling) -> tuple[int, int]:
    """KV groups and query heads a group; of a DeltaNet key heads, and value heads that share one."""
    if coupling.kind == "key_head":
        mixer = layer.linear_attn
        return mixer.key_heads, mixer.value_heads // mixer.key_heads
    mixer = layer.self_attn
    heads = mixer.o_proj.weight.shape[1] // mixer.head_dim
    if not hasattr(mixer, "v_proj"):  # it borrows keys and values
        return heads // mixer.num_key_value_groups, mixer.num_key_value_groups
    groups = mixer.v_proj.weight.shape[0] // mixer.head_dim
    return groups, heads // groups


# The projection that ends each sublayer. Its input columns are cut and repaired.
OUTPUTS = (("attention", KV_GROUP), ("attention", KEY_HEAD), ("ffn", FFN_CHANNEL))


def output_names(layer: Any) -> dict[str, str]:
    """Names of the projections that end the sublayers that a dense layer has; a convolution is no "attention"."""
    there = [
        (sublayer, coupling) for sublayer, coupling in OUTPUTS if getattr(layer, coupling.module, None) is not None
    ]
    return {sublayer: coupling.columns[0] for sublayer, coupling in there}


def output_projections(layer: Any) -> dict[str, Any]:
    """The modules of `output_names`."""
    return {sublayer: layer.get_submodule(name) for sublayer, name in output_names(layer).items()}


def output_columns(layer: Any, sublayer: str, kinds: dict[str, np.ndarray]) -> torch.Tensor:
    """Input columns of the projection that ends a sublayer ("attention" or "ffn") that stay, ascending."""
    if sublayer == "ffn":
        return torch.from_numpy(kinds["ffn"])
    name = output_names(layer)[sublayer]
    coupling = next(coupling for _, coupling in OUTPUTS if name in coupling.columns)
    return _slices(layer, name, layer.get_submodule(name).weight.shape[1], coupling, kinds)


@torch.no_grad()
def zero_removed(dense: Any, kept: Kept) -> None:
    """Zero, in place, all weights and biases of the structures not in `kept`: what `cut` must be equal to."""
    spec = spec_of(dense)
    for layer, kinds in zip(dense.model.layers, kept, strict=True):
        for coupling, name in spec.family.projections(layer):
            module = layer.get_submodule(name)
            axis = 1 if name in coupling.columns else 0
            gone = torch.ones(module.weight.shape[axis], dtype=torch.bool)
            gone[_slices(layer, name, len(gone), coupling, kinds)] = False
            if axis:
                module.weight[:, gone] = 0
            else:
                module.weight[gone] = 0
                if module.bias is not None:
                    module.bias[gone] = 0
