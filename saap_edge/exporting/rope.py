"""Rotary frequencies, which the exporters write into files."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from saap_edge.model.spec import ModelSpec

__all__ = ["rope_frequencies"]


def rope_frequencies(spec: ModelSpec) -> np.ndarray:
    """Angle of each rotated pair per position, in radians, float32 [pairs], scaled as the model says.

    The formulas are those of transformers' modeling_rope_utils:

    - linear: all frequencies divided by `factor`.
    - llama3: the same for wavelengths above original/low; those below original/high stay; between them a mixture.
    - yarn: a mixture, too, by a ramp over the pairs (arXiv 2309.00071).
    - longrope: each divided by a factor of its own, here by that for the context of pretraining.

    >>> from saap_edge.model.spec import spec_from_config
    >>> spec = spec_from_config({"model_type": "llama", "vocab_size": 100, "hidden_size": 16, "num_attention_heads": 4,
    ...     "intermediate_size": 32, "num_hidden_layers": 1, "rope_theta": 10000.0})
    >>> [round(float(frequency), 4) for frequency in rope_frequencies(spec)]
    [1.0, 0.01]
    """
    # In float32, as in transformers: at position 100,000 its rounding changes the angle noticeably.
    width = spec.rotary or spec.head_dim
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    plain, scaling = (1 / np.float32(spec.rope_theta) ** exponents).astype(np.float32), spec.rope_scaling
    if scaling is None:
        return plain
    if scaling["rope_type"] == "longrope":
        return (plain / np.array(scaling["short_factor"], dtype=np.float64)).astype(np.float32)
    factor = float(scaling["factor"])
    kept = {"linear": _none_kept, "llama3": _llama3_kept, "yarn": _yarn_kept}[scaling["rope_type"]](plain, scaling)
    return ((1 - kept) * plain / factor + kept * plain).astype(np.float32)


def _none_kept(plain: np.ndarray, scaling: dict[str, Any]) -> np.ndarray:
    return np.zeros_like(plain)


def _llama3_kept(plain: np.ndarray, scaling: dict[str, Any]) -> np.ndarray:
    """Share of each frequency that is not scaled."""
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    rotations = scaling["original_max_position_embeddings"] * plain / (2 * math.pi)
    return np.asarray(np.clip((rotations - low) / (high - low), 0, 1))


def _yarn_kept(plain: np.ndarray, scaling: dict[str, Any]) -> np.ndarray:
    """As `_llama3_kept`, by a ramp between the pairs that rotate `beta_fast` and `beta_slow` times."""
    pairs, original = len(plain), scaling["original_max_position_embeddings"]

    def pair(rotations: float) -> float:
        return pairs * math.log(original / (rotations * 2 * math.pi)) / math.log(scaling["rope_theta"])

    first, last = pair(scaling.get("beta_fast") or 32), pair(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * pairs - 1)
    return np.asarray(1 - np.clip((np.arange(pairs) - first) / (last - first or 0.001), 0, 1))
