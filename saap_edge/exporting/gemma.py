"""Gemma 2 and 3 in llama.cpp: what its architectures read from metadata, and what is fixed in them (src/models)."""

from __future__ import annotations

import gguf

from saap_edge.families import Gemma
from saap_edge.model.spec import ModelSpec

__all__ = ["add_gemma", "gemma_limit"]

# With so many layers llama.cpp takes a model for the 27B one, and scales scores by hidden size / heads.
_LARGEST = {"gemma2": 46, "gemma3": 62}
_PERIOD = {"gemma2": 2, "gemma3": 6}  # every second, or sixth, layer has no window
_WINDOW_THETA = 10000.0  # rope base of gemma3's windowed layers; only later versions read it from metadata


def gemma_limit(spec: ModelSpec, gemma: Gemma, architecture: str) -> str | None:
    """What llama.cpp's `architecture` would compute differently for this Gemma, or None."""
    period = _PERIOD[architecture]
    if len(spec.layers) == _LARGEST[architecture]:
        return "at that depth llama.cpp scales attention scores by the number of heads, which pruning changes"
    if gemma.attention_scalar != spec.head_dim:
        return (
            f"llama.cpp divides attention scores by the root of head_dim ({spec.head_dim}), this model by that of "
            f"query_pre_attn_scalar ({gemma.attention_scalar:g})"
        )
    if not gemma.window or any(windowed != ((index + 1) % period > 0) for index, windowed in enumerate(gemma.windowed)):
        return f"llama.cpp has a sliding window in all but the last of every {period} layers, this model in others"
    if architecture == "gemma2":
        if not (gemma.attention_cap and gemma.final_cap):
            return "llama.cpp caps the scores and logits of every Gemma 2, this model does not"
        return None if spec.tied else "llama.cpp's 'gemma2' has no output matrix of its own"
    if gemma.window_theta != _WINDOW_THETA:
        return f"llama.cpp's 'gemma3' has rope base {_WINDOW_THETA:g} in layers with a window"
    return None


def add_gemma(writer: gguf.GGUFWriter, gemma: Gemma) -> None:
    """Add the window and the soft caps to the metadata. llama.cpp knows which layers have the window."""
    writer.add_sliding_window(int(gemma.window or 0))
    if gemma.attention_cap:
        writer.add_attn_logit_softcapping(gemma.attention_cap)
    if gemma.final_cap:
        writer.add_final_logit_softcapping(gemma.final_cap)
