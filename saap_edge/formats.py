"""Formats of artifacts."""

from __future__ import annotations

from typing import Literal

__all__ = ["Format"]

Format = Literal[
    "gguf-f32", "gguf-f16", "gguf-bf16", "gguf-q8_0", "gguf-q4_0", "gguf-q4_1", "onnx-fp32", "onnx-fp16", "onnx-int4",
    "onnx-int4-full", "onnx-int8", "onnx-optimum", "gguf-q6_k", "gguf-q5_k_m", "gguf-q4_k_m", "gguf-q4_k_s",
    "gguf-q3_k_m", "gguf-q3_k_s", "gguf-q2_k", "gguf-iq4_nl", "gguf-iq4_xs", "gguf-iq3_m", "gguf-iq3_s", "gguf-iq3_xxs",
    "gguf-iq2_m", "gguf-iq2_s", "gguf-iq2_xs", "gguf-iq2_xxs",
]  # fmt: skip
