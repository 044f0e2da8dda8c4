"""Hidden states of calibration text, carried through the decoder one layer at a time.

What a layer's own closed-form problems need is its inputs, never the whole model's activations: memory holds the
states of one depth, whatever the number of layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from saap_edge.errors import SaapError

__all__ = [
    "BATCH", "Branch", "attention_branch", "ffn_branch", "follow", "layer_arguments", "layer_inputs", "output_norm",
    "require_finite_sums", "sandwiched",
]  # fmt: skip

BATCH = 8  # windows run together
Branch = Callable[[torch.Tensor], torch.Tensor]


class _Stop(Exception):
    """The first layer's input is seen: the rest of the forward pass is not needed."""


@torch.no_grad()
def layer_inputs(model: Any, windows: torch.Tensor) -> list[torch.Tensor]:
    """Input of the first layer for `windows` [n, window]: one tensor [<= BATCH, window, hidden] a chunk."""
    seen: list[torch.Tensor] = []

    def stop(module: Any, inputs: tuple[torch.Tensor, ...], keywords: dict[str, Any]) -> None:
        seen.append(inputs[0] if inputs else keywords["hidden_states"])
        raise _Stop

    handle = model.model.layers[0].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        for chunk in windows.split(BATCH) if len(windows) else ():
            try:
                model(input_ids=chunk.to(model.get_input_embeddings().weight.device), use_cache=False)
            except _Stop:
                continue
    finally:
        handle.remove()
    return seen


@torch.no_grad()
def layer_arguments(model: Any, windows: torch.Tensor) -> list[dict[str, Any]]:
    """What every layer's attention is called with beside hidden states (rotary tables, mask) for one such window.

    Taken from the model's own forward pass, so that masks and rotary tables of every family are right by themselves.
    """
    seen: list[dict[str, Any]] = [{} for _ in model.model.layers]
    handles = []
    for index, layer in enumerate(model.model.layers):
        if layer.self_attn is None:  # removed whole
            continue

        def keep(module: Any, inputs: Any, keywords: dict[str, Any], index: int = index) -> None:
            seen[index] = {name: value for name, value in keywords.items() if name != "hidden_states"}

        handles.append(layer.self_attn.register_forward_pre_hook(keep, with_kwargs=True))
    try:
        model(input_ids=windows[:1].to(model.get_input_embeddings().weight.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def require_finite_sums(sums: torch.Tensor, index: int, name: str) -> None:
    """Raise SaapError where products of what projection `name` of layer `index` takes have no finite sum: no matrix
    made of them can be solved for."""
    if not bool(torch.isfinite(sums.sum(dtype=torch.float64))):
        raise SaapError(
            f"layer {index}: what {name} takes on the calibration text is too large to be squared, or no number"
        )


def follow(layer: Any, states: list[torch.Tensor]) -> None:
    """Bring states to the layer, in place: a model spread over GPUs has it on another one than the layer before."""
    device = next(layer.parameters()).device
    states[:] = [state.to(device) for state in states]


def attention_branch(layer: Any, arguments: dict[str, Any]) -> Branch:
    """What the layer's attention adds to its input [n, window, hidden]."""

    def branch(state: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = layer.self_attn(hidden_states=layer.input_layernorm(state), **arguments)[0]
        return layer.post_attention_layernorm(output) if sandwiched(layer) else output

    return branch


def ffn_branch(layer: Any) -> Branch:
    """What the layer's FFN adds to its input [n, window, hidden]."""

    def branch(state: torch.Tensor) -> torch.Tensor:
        if sandwiched(layer):
            wrapped: torch.Tensor = layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(state)))
            return wrapped
        output: torch.Tensor = layer.mlp(layer.post_attention_layernorm(state))
        return output

    return branch


def sandwiched(layer: Any) -> bool:
    """The layer norms what a sublayer gives as well as what it takes (Gemma 2 and 3)."""
    return hasattr(layer, "pre_feedforward_layernorm")


def output_norm(layer: Any, sublayer: str) -> Any:
    """The module that norms what a sublayer ("attention" or "ffn") gives, None where nothing does."""
    if not sandwiched(layer):
        return None
    return layer.post_attention_layernorm if sublayer == "attention" else layer.post_feedforward_layernorm
