"""Gemma 4 in llama.cpp, its `gemma4`: heads, KV heads and FFN width of every layer, which no other family has natively.

Layers without window have heads of a size of their own. Those of their pairs that do not rotate are held in place by a
table of frequencies, which llama.cpp divides by. Borrowed keys and values are those of the layer before the first that
borrows, or of the one before that where the borrower has a window.
"""

from __future__ import annotations

from collections.abc import Callable

import gguf
import numpy as np
import torch

from saap_edge.model.spec import ModelSpec

__all__ = ["PER_LAYER", "add_gemma4", "full_head_dim", "gemma4_limit", "layer_factor", "turning"]

# llama.cpp's projection <- ours.
PER_LAYER: dict[str, tuple[str, ...]] = {"inp_gate": ("per_layer_input_gate",), "proj": ("per_layer_projection",)}
_STILL = 1e30  # what frequencies of pairs that do not rotate are divided by


def full_head_dim(spec: ModelSpec) -> int:
    """Numbers of a head in layers without window."""
    return next((layer.head_dim for layer in spec.layers if layer.head_dim), spec.head_dim)


def turning(spec: ModelSpec) -> np.ndarray:
    """What llama.cpp divides the frequencies of layers without window by, float32 [pairs of a head].

    As transformers rounds down the number of pairs that rotate.
    """
    assert spec.gemma
    width = full_head_dim(spec)
    pairs = int(spec.gemma.turned * width // 2)
    factors: np.ndarray = np.where(np.arange(width // 2) < pairs, 1.0, _STILL).astype(np.float32)
    return factors


def layer_factor(tensor: Callable[[str], torch.Tensor], index: int) -> np.ndarray:
    """What a layer's output is multiplied by, float32 [1]. `tensor` reads a tensor of the folder."""
    factor: np.ndarray = tensor(f"model.layers.{index}.layer_scalar").numpy()
    return factor


def add_gemma4(writer: gguf.GGUFWriter, spec: ModelSpec) -> None:
    """The metadata that only this architecture has."""
    gemma = spec.gemma
    assert gemma and gemma.window_theta
    writer.add_shared_kv_layers(sum(layer.kv == "borrowed" for layer in spec.layers))
    writer.add_embedding_length_per_layer_input(gemma.per_layer)
    writer.add_sliding_window_pattern(list(gemma.windowed))
    writer.add_key_length_swa(spec.head_dim)
    writer.add_value_length_swa(spec.head_dim)
    writer.add_rope_dimension_count_swa(spec.head_dim)
    writer.add_rope_freq_base_swa(gemma.window_theta)
    if not gemma.final_cap:  # without a word llama.cpp caps logits at 30
        writer.add_final_logit_softcapping(0.0)


def gemma4_limit(spec: ModelSpec) -> str | None:
    """Why llama.cpp's 'gemma4' cannot hold this model, or None. It would abort, or read other keys and values."""
    gemma = spec.gemma
    assert gemma
    if len(spec.layers) < 2 or not any(gemma.windowed):
        return "llama.cpp's 'gemma4' needs two layers or more, and one of them with a sliding window"
    first = next((index for index, layer in enumerate(spec.layers) if layer.kv == "borrowed"), None)
    if first is None:
        return None
    used = {gemma.windowed[index] for index in range(first, len(spec.layers))}
    if first < 2 or (False in used and gemma.windowed[first - 1]) or (True in used and not gemma.windowed[first - 2]):
        return (
            f"llama.cpp takes borrowed keys and values from layer {first - 1}, with a window from layer {first - 2}; "
            "this model has them in others"
        )
    return None
