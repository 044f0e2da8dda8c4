"""Rotary frequencies, for the exporters that have to write them down."""

from __future__ import annotations

import math

import numpy as np

from saap_edge.model.spec import ModelSpec

__all__ = ["rope_frequencies"]


def rope_frequencies(spec: ModelSpec) -> np.ndarray:
    """Angle per position of each rotated pair, float32 [head_dim / 2], with llama3 scaling where the model has it.

    As transformers' `_compute_llama3_parameters`: wavelengths above original/low are slowed by `factor`, below
    original/high left alone, and blended in between.
    """
    exponents = np.arange(0, spec.head_dim, 2, dtype=np.float32) / np.float32(spec.head_dim)
    frequencies = 1 / np.float32(spec.rope_theta) ** exponents
    scaling = spec.rope_scaling
    if scaling is None:
        return frequencies.astype(np.float32)
    factor, low, high = (float(scaling[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(scaling["original_max_position_embeddings"])
    wavelengths = 2 * math.pi / frequencies
    blend = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    return np.asarray((1 - blend) * frequencies / factor + blend * frequencies, dtype=np.float32)
