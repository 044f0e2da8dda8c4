"""Hidden states of calibration text, carried through the decoder one layer at a time.

The closed-form problems of a layer need only that layer's inputs. So memory holds the states of one depth, however many
layers there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch

from saap_edge.errors import SaapError
from saap_edge.model.stream_gemma4 import Beside, is_gemma4, widened

__all__ = [
    "BATCH", "Branch", "added_by", "attention_branch", "ffn_branch", "follow", "layer_arguments", "layer_inputs",
    "output_norm", "require_finite_sums", "sandwiched",
]  # fmt: skip

BATCH = 8  # windows run together
Branch = Callable[[torch.Tensor], torch.Tensor]
BESIDE = "beside"  # of a layer's arguments: what runs it, where states are wider than the hidden size


class _Stop(Exception):
    """Ends a forward pass once the first layer's input has been seen."""


@torch.no_grad()
def layer_inputs(model: Any, windows: torch.Tensor) -> list[torch.Tensor]:
    """Input of the first layer for `windows` [n, window]: one tensor [<= BATCH, window, hidden] a chunk.

    Those of Gemma 4 are wider (stream_gemma4.py).
    """
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
    if is_gemma4(model):
        return [widened(model, *pair) for pair in zip(seen, windows.split(BATCH), strict=False)]
    return seen


@torch.no_grad()
def layer_arguments(model: Any, windows: torch.Tensor) -> list[dict[str, Any]]:
    """For every layer, the arguments of its attention besides hidden states (rotary tables, mask), for one window.

    They come from the model's own forward pass, so that they are right for every family.
    """
    seen: list[dict[str, Any]] = [{} for _ in model.model.layers]
    handles = []
    for index, layer in enumerate(model.model.layers):
        if layer.self_attn is None:  # removed whole, or something else in its place
            continue

        def keep(module: Any, inputs: Any, keywords: dict[str, Any], index: int = index) -> None:
            seen[index] = {name: value for name, value in keywords.items() if name != "hidden_states"}

        handles.append(layer.self_attn.register_forward_pre_hook(keep, with_kwargs=True))
    try:
        model(input_ids=windows[:1].to(model.get_input_embeddings().weight.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if is_gemma4(model):
        own = ({name: value for name, value in each.items() if name != "shared_kv_states"} for each in seen)
        return [each | {BESIDE: Beside(model, index)} for index, each in enumerate(own)]
    return seen


def require_finite_sums(sums: torch.Tensor, index: int, name: str) -> None:
    """Raise SaapError when `sums`, products of the inputs of projection `name` in layer `index`, are not finite.

    No equation with such a matrix can be solved.
    """
    if not bool(torch.isfinite(sums.sum(dtype=torch.float64))):
        raise SaapError(
            f"layer {index}: what {name} takes on the calibration text is too large to be squared, or no number"
        )


def follow(layer: Any, states: list[torch.Tensor]) -> None:
    """Move states to the layer's device, in place: in a model spread over GPUs the layer before may be on another."""
    device = next(layer.parameters()).device
    states[:] = [state.to(device) for state in states]


def attention_branch(layer: Any, arguments: dict[str, Any]) -> Branch:
    """The function from a layer's input [n, window, hidden] to what its attention, or what is in its place, adds.

    That is nothing where a layer has neither, nor an FFN in `ffn_branch`.
    """
    mixer = remembering(layer)
    if BESIDE in arguments:
        runner: Beside = arguments[BESIDE]
        return runner.attention({name: value for name, value in arguments.items() if name != BESIDE})
    if mixer is None and layer.self_attn is None:
        return torch.zeros_like
    if mixer is not None:
        return lambda state: cast(torch.Tensor, mixer(layer.input_layernorm(state)))

    def branch(state: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = layer.self_attn(hidden_states=layer.input_layernorm(state), **arguments)[0]
        return layer.post_attention_layernorm(output) if sandwiched(layer) else output

    return branch


def remembering(layer: Any) -> Any | None:
    """The short convolution, gated DeltaNet or Mamba-2 that a layer has in the place of attention, or None."""
    found = (getattr(layer, name, None) for name in ("conv", "linear_attn", "mamba"))
    return next((mixer for mixer in found if mixer is not None), None)


def ffn_branch(layer: Any, arguments: dict[str, Any]) -> Branch:
    """The function from an FFN's residual input [n, window, hidden] to what the FFN adds to it.

    `arguments` are the layer's, of `layer_arguments`.
    """
    if BESIDE in arguments:
        runner: Beside = arguments[BESIDE]
        return runner.ffn()
    if layer.mlp is None:
        return torch.zeros_like

    def branch(state: torch.Tensor) -> torch.Tensor:
        if sandwiched(layer):
            wrapped: torch.Tensor = layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(state)))
            return wrapped
        output: torch.Tensor = layer.mlp(layer.post_attention_layernorm(state))
        return output

    return branch


def sandwiched(layer: Any) -> bool:
    """Whether the layer normalises a sublayer's output as well as its input (Gemma 2, 3 and 4)."""
    return hasattr(layer, "pre_feedforward_layernorm")


def output_norm(layer: Any, sublayer: str) -> Any:
    """The module that norms what a sublayer ("attention" or "ffn") gives, None where nothing does."""
    if not sandwiched(layer):
        return None
    return layer.post_attention_layernorm if sublayer == "attention" else layer.post_feedforward_layernorm


def added_by(
    layer: Any, sublayer: str, arguments: dict[str, Any]
) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """What a sublayer adds to a state, given that state, the output of its last projection, and what the sublayer adds
    behind the width of that output (nothing, but for wider states)."""
    if BESIDE in arguments:
        runner: Beside = arguments[BESIDE]
        return runner.attended if sublayer == "attention" else runner.fed
    norm = output_norm(layer, sublayer)
    return lambda state, output, rest: output if norm is None else norm(output)
