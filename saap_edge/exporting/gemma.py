"""Gemma 2 and 3 in llama.cpp: what its architectures take from metadata, and what they have fixed (src/models)."""

from __future__ import annotations

import gguf

from saap_edge.families import Gemma
from saap_edge.model.spec import ModelSpec

__all__ = ["add_gemma", "gemma_limit"]

# In these, by their number of layers taken for the 27B models, the scale of scores comes from the number of heads.
_LARGEST = {"gemma2": 46, "gemma3": 62}
_PERIOD = {"gemma2": 2, "gemma3": 6}  # every such layer has no window
_WINDOW_THETA = 10000.0  # of gemma3; later versions read it from metadata, earlier ones do not


def gemma_limit(spec: ModelSpec, gemma: Gemma, architecture: str) -> str | None:
    """What of this Gemma llama.cpp would compute otherwise, or None."""
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
    """Window and soft caps; that layers follow a pattern, llama.cpp knows."""
    writer.add_sliding_window(int(gemma.window or 0))
    if gemma.attention_cap:
        writer.add_attn_logit_softcapping(gemma.attention_cap)
    if gemma.final_cap:
        writer.add_final_logit_softcapping(gemma.final_cap)
