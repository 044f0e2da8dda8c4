"""Attention of short windows as two products of matrices, which processors with bfloat16 take at full rate.

torch's own kernel on the CPU gains nothing from bfloat16: with windows of 256 tokens it takes twice as long as these
products (findings/torch-attention-gains-nothing-from-bfloat16.sh). It stays in use for longer windows, of which it
leaves out what is masked, for float32 and on GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

__all__ = ["LONGEST", "short_attention"]

LONGEST = 512  # tokens of a window: the probabilities of all pairs are kept for the gradient
_ATTENTION, _TORCHS = "saap_edge_short", "sdpa"


@contextmanager
def short_attention(model: Any) -> Iterator[None]:
    """Inside, the model attends by products of matrices, wherever autocast to bfloat16 is on and windows are short.

    A model that does not use torch's own attention stays as it is.
    """
    config = model.config
    if config._attn_implementation != _TORCHS:
        yield
        return
    config._attn_implementation = _ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = _TORCHS


def _attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, dropout: float = 0.0, scaling: float | None = None, **others: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Heads [batch, heads, tokens, width] to [batch, tokens, heads, width], as transformers' attention functions."""
    if not _fits(query, key, attention_mask, dropout, others):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    (batch, heads, tokens, width), shared = query.shape, key.shape[1]
    rows = query.reshape(batch * shared, -1, width)  # queries that share keys lie below one another
    hidden = _hidden(tokens) if attention_mask is None else _as_added(attention_mask[0, 0])
    scores = torch.baddbmm(
        hidden.to(rows.device, torch.bfloat16).repeat(heads // shared, 1), rows,
        key.reshape(batch * shared, tokens, width).transpose(1, 2), alpha=width**-0.5 if scaling is None else scaling,
    )  # fmt: skip
    found = torch.bmm(scores.softmax(-1), value.reshape(batch * shared, tokens, -1))
    return found.view(batch, heads, tokens, -1).transpose(1, 2).contiguous(), None


def _fits(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, dropout: float, others: dict[str, Any]
) -> bool:
    """Whether this is plain causal attention of a short window, the same for all sequences and heads."""
    return (
        query.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and query.shape[2] == key.shape[2] <= LONGEST
        and (mask is None or (mask.shape[1] == 1 and torch.equal(mask[:1].expand_as(mask), mask)))
        and not dropout
        and others.get("is_causal") is not False
        and all(others.get(name) is None for name in ("softcap", "position_bias", "s_aux"))
    )


@lru_cache(maxsize=4)
def _hidden(tokens: int) -> torch.Tensor:
    """What is added to scores [tokens, tokens] so that no token sees those after it."""
    return _as_added(torch.ones(tokens, tokens, dtype=torch.bool).tril())


def _as_added(seen: torch.Tensor) -> torch.Tensor:
    """A mask of what is seen, as what is added to scores."""
    if seen.dtype != torch.bool:
        return seen
    return torch.zeros(seen.shape).masked_fill_(~seen, torch.finfo(torch.bfloat16).min)


ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(_ATTENTION, sdpa_mask)
