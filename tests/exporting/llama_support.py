"""llama.cpp with a float32 KV cache: in F32 files nothing is left to round, so that answers are torch's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from saap_edge.engines.llama_cpp import LlamaCppEngine


class ExactEngine(LlamaCppEngine):
    """The engine with keys and values in float32; without flash attention, which would cast them to fp16."""

    def _parameters(self) -> Any:
        parameters = super()._parameters()
        parameters.type_k = parameters.type_v = llama_cpp.GGML_TYPE_F32
        parameters.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        return parameters


def exact_logits(path: Path, tokens: list[int]) -> np.ndarray:
    """Logits [tokens, vocab]: the first half as a prompt, then token by token."""
    engine, half = ExactEngine(path, 1, 2 * len(tokens)), len(tokens) // 2
    prompt = engine.forward(tokens[:half], all_logits=True).copy()
    return np.concatenate([prompt, *(engine.forward([token]).copy() for token in tokens[half:])])


def with_gelu_table(model: Any) -> Any:
    """The model, in place, with GELU as llama.cpp has it: a table that rounds arguments and values to fp16."""
    for layer in model.model.layers:
        for owner in (layer, layer.mlp):  # Gemma 4 has one of its own in the layer
            if hasattr(owner, "act_fn"):
                gelu = owner.act_fn.forward
                owner.act_fn.forward = lambda x, gelu=gelu: gelu(x.half().float()).half().float()
    return model
