"""The program that ExecuTorch runs: transformers' model with a KV cache that it updates in place.

Attention and cache are the operators of ExecuTorch's own LLM exporter (`llama::update_cache`, `llama::custom_sdpa`),
which read only the tokens that are there. Each layer's cache has that layer's own KV heads, so that widths per layer
cost nothing. What these operators lack, a window and a cap on scores, is computed in plain operators.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from saap_edge.model.spec import ModelSpec

__all__ = ["ATTENTION", "Program", "use_program_attention"]

ATTENTION = "saap_edge_executorch"  # the name that transformers knows our attention by; it makes no mask for it


class _Cache:
    """What transformers' attention takes for a cache: the buffers of a `Program`, written from `start` on."""

    def __init__(self, keys: list[torch.Tensor], values: list[torch.Tensor], start: int) -> None:
        self._keys, self._values, self._start = keys, values, start

    def get_seq_length(self, layer: int = 0) -> int:
        """Never needed, because positions are given; but it is asked for."""
        return self._start

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values [1, kv heads, tokens, head_dim] of a layer; returns all of it, as it is stored."""
        for new, buffer in ((key, self._keys[layer]), (value, self._values[layer])):
            torch.ops.llama.update_cache(new.transpose(1, 2), buffer, self._start)
        return self._keys[layer], self._values[layer]


class Program(nn.Module):
    """The model as one method, `forward(tokens, cache_position)`.

    `tokens` are int64 [1, n], `cache_position` their places in the text, int64 [n], one after the other; the result is
    the logits of the last one, float32 [1, vocab]. Those of all would take megabytes that nobody reads: memory is
    planned for the longest input.
    """

    def __init__(self, model: Any, spec: ModelSpec, context: int) -> None:
        """`context`: tokens that the cache holds. The model's attention has to be ATTENTION."""
        super().__init__()
        self.model, self.context = model, context
        kv_heads = [layer.kv_heads for layer in spec.layers if layer.heads]
        self._layers = len(kv_heads)
        for index, heads in enumerate(kv_heads):
            for kind in ("keys", "values"):
                room = torch.zeros(1, context, heads, spec.head_dim)
                self.register_buffer(f"{kind}_{index}", room, persistent=False)

    def forward(self, tokens: torch.Tensor, cache_position: torch.Tensor) -> torch.Tensor:
        """Append tokens from `cache_position[0]` on, and answer the logits that follow the last."""
        start: Any = cache_position[0].item()  # in a trace a symbol, which int() would fix to one number
        torch._check(start >= 0)
        torch._check(start + tokens.shape[1] <= self.context)
        keys, values = ([getattr(self, f"{kind}_{i}") for i in range(self._layers)] for kind in ("keys", "values"))
        answer = self.model(
            input_ids=tokens, position_ids=cache_position[None], past_key_values=_Cache(keys, values, start),
            use_cache=True, cache_start=start, logits_to_keep=1,
        )  # fmt: skip
        logits: torch.Tensor = answer.logits[:, -1]
        return logits


def use_program_attention(model: Any) -> None:
    """Give a model the attention of a `Program`, and rotary tables that do not change with the length of the text.

    Exports have the context of pretraining only, up to which no scaling changes (`spec_from_config`).
    """
    import executorch.extension.llm.custom_ops.custom_ops  # noqa: F401 (registers the operators with torch)

    AttentionInterface.register(ATTENTION, _attention)
    model.config._attn_implementation = ATTENTION
    for module in model.modules():
        if isinstance(getattr(module, "rope_type", None), str):
            module.rope_type = "default"


def _attention(
    module: nn.Module, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: None, *,
    cache_start: int, position_ids: torch.Tensor, scaling: float, sliding_window: int | None = None,
    softcap: float | None = None, **_: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention of queries [1, heads, tokens, head_dim] over a layer's cache [1, context, kv heads, head_dim]."""
    if sliding_window is None and softcap is None:
        found = torch.ops.llama.custom_sdpa(query.transpose(1, 2), keys, values, cache_start, None, 0.0, True, scaling)
        return found, None
    heads, groups = query.shape[1], query.shape[1] // keys.shape[2]
    wide_keys, wide_values = (part.transpose(1, 2).repeat_interleave(groups, 1) for part in (keys, values))
    assert wide_keys.shape[1] == heads
    scores = query @ wide_keys.transpose(2, 3) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    behind = position_ids[0][:, None] - torch.arange(keys.shape[1])
    seen = behind >= 0 if sliding_window is None else (behind >= 0) & (behind < sliding_window)
    shares = torch.where(seen, scores, torch.finfo(scores.dtype).min).softmax(-1)
    return (shares @ wide_values).transpose(1, 2), None
