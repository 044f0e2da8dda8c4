"""Rotary frequencies, for the exporters that have to write them down."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from saap_edge.model.spec import ModelSpec

__all__ = ["rope_frequencies"]


def rope_frequencies(spec: ModelSpec) -> np.ndarray:
    """Angle per position of each rotated pair, float32 [head_dim / 2], scaled as the model says.

    As transformers' modeling_rope_utils. llama3: wavelengths above original/low are slowed by `factor`, below
    original/high left alone, and blended in between; yarn: the same by a ramp over the pairs; longrope: each pair by a
    factor of its own, here those within the context of pretraining.
    """
    # In float32, as transformers: at position 100,000 its rounding is an angle that shows.
    exponents = np.arange(0, spec.head_dim, 2, dtype=np.float32) / np.float32(spec.head_dim)
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
    """Share of each frequency that stays as it is."""
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    rotations = scaling["original_max_position_embeddings"] * plain / (2 * math.pi)
    return np.asarray(np.clip((rotations - low) / (high - low), 0, 1))


def _yarn_kept(plain: np.ndarray, scaling: dict[str, Any]) -> np.ndarray:
    """As `_llama3_kept`, by a ramp over the pairs between those that turn `beta_fast` and `beta_slow` times."""
    pairs, original = len(plain), scaling["original_max_position_embeddings"]

    def pair(rotations: float) -> float:
        return pairs * math.log(original / (rotations * 2 * math.pi)) / math.log(scaling["rope_theta"])

    first, last = pair(scaling.get("beta_fast") or 32), pair(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * pairs - 1)
    return np.asarray(1 - np.clip((np.arange(pairs) - first) / (last - first or 0.001), 0, 1))
