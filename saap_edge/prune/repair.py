"""Repair: least-squares update of `o_proj` and `down_proj` after some of their inputs are gone.

For a projection y = W x whose inputs are cut to `kept`, the best W' under calibration inputs has a closed form,
    W' = W G[:, kept] (G[kept, kept] + ridge)^-1,    G = sum x x^T,
so no gradient and no training is needed. Layers are mended in order, each on the activations that the already mended
layers before it produce.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from saap_edge.errors import SaapError
from saap_edge.prune.surgery import Kept, expand

__all__ = ["least_squares", "repair"]

RIDGE = 1e-3  # of the mean diagonal of G: enough for channels that are nearly collinear


def least_squares(weight: torch.Tensor, gram: torch.Tensor, kept: torch.Tensor, ridge: float = RIDGE) -> torch.Tensor:
    """W' [out, kept] closest to W [out, in] in the metric of `gram` [in, in]. Solved in float64.

    The ridge pulls towards W[:, kept], not towards zero, so that with no data W' is the plain cut.
    """
    gram = gram.double()
    inner = gram[kept][:, kept]
    inner = inner + ridge * inner.diagonal().mean().clamp_min(1e-30) * torch.eye(len(kept), dtype=torch.float64)
    plain = weight.double()[:, kept]
    # What the cut weights still miss: the removed columns' output, projected on the kept inputs.
    gone = torch.ones(gram.shape[0], dtype=torch.bool)
    gone[kept] = False
    missing = weight.double()[:, gone] @ gram[gone][:, kept]
    return (plain + torch.linalg.solve(inner, missing.T).T).to(weight.dtype)


@torch.no_grad()
def repair(
    dense: Any, pruned: Any, kept: Kept, windows: torch.Tensor, progress: Callable[[], None] = lambda: None
) -> None:
    """Mend `pruned` in place, layer by layer.

    Args:
        dense: the model it was cut from.
        pruned: what `surgery.cut` gave; changed in place.
        kept: `[layer][kind]` ascending indices, as given to `cut`.
        windows: calibration token ids [n, window].
        progress: called after every layer.

    Raises SaapError when attention is not transformers' own SDPA, which alone is causal without a mask.
    """
    if dense.config._attn_implementation != "sdpa":
        raise SaapError(f"repair needs attention 'sdpa', not '{dense.config._attn_implementation}'")
    device = next(dense.parameters()).device
    states = [dense.model.embed_tokens(chunk.to(device)) for chunk in windows.split(8)]
    positions = torch.arange(windows.shape[1], device=device)[None]
    rotary = dense.model.rotary_emb(states[0], positions)
    for old, new, kinds in zip(dense.model.layers, pruned.model.layers, kept, strict=True):
        head_rows = old.self_attn.o_proj.weight.shape[1] // (
            old.self_attn.v_proj.weight.shape[0] // old.self_attn.head_dim
        )
        _mend_attention(old, new, expand(kinds["attention"], head_rows), states, rotary)
        for index, state in enumerate(states):
            states[index] = state + _attend(new, state, rotary)
        _mend_ffn(old, new, torch.from_numpy(kinds["ffn"]), states)
        for index, state in enumerate(states):
            states[index] = state + _feed(new, state)
        progress()


def _attend(layer: Any, state: torch.Tensor, rotary: Any) -> torch.Tensor:
    output: torch.Tensor = layer.self_attn(
        hidden_states=layer.input_layernorm(state), position_embeddings=rotary, attention_mask=None
    )[0]
    return output


def _feed(layer: Any, state: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = layer.mlp(layer.post_attention_layernorm(state))
    return output


def _mend_attention(old: Any, new: Any, kept: torch.Tensor, states: list[torch.Tensor], rotary: Any) -> None:
    if len(kept) == old.self_attn.o_proj.weight.shape[1]:
        return
    gram = _input_gram(old.self_attn.o_proj, [partial(_attend, old, state, rotary) for state in states])
    new.self_attn.o_proj.weight.copy_(least_squares(old.self_attn.o_proj.weight.cpu(), gram, kept))


def _mend_ffn(old: Any, new: Any, kept: torch.Tensor, states: list[torch.Tensor]) -> None:
    if len(kept) == old.mlp.down_proj.weight.shape[1]:
        return
    gram = _input_gram(old.mlp.down_proj, [partial(_feed, old, state) for state in states])
    new.mlp.down_proj.weight.copy_(least_squares(old.mlp.down_proj.weight.cpu(), gram, kept))


def _input_gram(module: Any, calls: Sequence[Callable[[], Any]]) -> torch.Tensor:
    """Sum of x x^T over all inputs x that `module` sees during `calls`, float32 [in, in] on the CPU."""
    width = module.weight.shape[1]
    gram = torch.zeros(width, width, device=module.weight.device)

    def collect(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        rows = inputs[0].reshape(-1, width).float()
        gram.addmm_(rows.T, rows)

    handle = module.register_forward_pre_hook(collect)
    try:
        for call in calls:
            call()
    finally:
        handle.remove()
    return gram.cpu()
