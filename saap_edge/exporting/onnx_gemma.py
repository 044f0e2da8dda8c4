"""Gemma 2 and 3 in ONNX: Llama's graph with norms of sublayer outputs, windows, soft caps and GELU.

After transformers' modeling_gemma2.py and modeling_gemma3.py. GroupQueryAttention itself has soft caps and windows.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from saap_edge.exporting.onnx_decoder import Decoder
from saap_edge.families import Gemma

__all__ = ["GemmaDecoder"]


class GemmaDecoder(Decoder):
    """Writes the decoder of a model whose spec has a `gemma`."""

    FFN_NORM, MIXED_NORM = "pre_feedforward_layernorm", "post_attention_layernorm"

    @property
    def gemma(self) -> Gemma:
        """The spec's `gemma`."""
        assert self.spec.gemma
        return self.spec.gemma

    def _sequence(self, ids: ir.Value, mask: ir.Value) -> None:
        super()._sequence(ids, mask)
        self.windowed, theta = self.rotary, self.gemma.window_theta
        if theta and any(self.gemma.windowed):
            self.windowed = self._rotary(replace(self.spec, rope_theta=theta, rope_scaling=None), "window")

    def _embedding(self, ids: ir.Value) -> tuple[ir.Value, tuple[ir.Value, ...]]:
        vectors, table = super()._embedding(ids)
        return self._times(vectors, "embedding_scale", math.sqrt(self.spec.hidden)), table

    def _attention(self, x: ir.Value, index: int) -> ir.Value:
        return self.norm(super()._attention(x, index), f"model.layers.{index}.{self.MIXED_NORM}.weight")

    def _kind(self, index: int) -> tuple[tuple[ir.Value, ir.Value] | None, dict[str, Any]]:
        gemma, windowed = self.gemma, self.gemma.windowed[index]
        attributes: dict[str, Any] = {"scale": 1 / math.sqrt(gemma.attention_scalar)}
        if gemma.attention_cap:
            attributes["softcap"] = float(gemma.attention_cap)
        if windowed and gemma.window:
            attributes["local_window_size"] = int(gemma.window)
        return self.windowed if windowed else self.rotary, attributes

    def _ffn(self, x: ir.Value, prefix: str) -> ir.Value:
        return self.norm(super()._ffn(x, prefix), f"{prefix}post_feedforward_layernorm.weight")

    def _activation(self, gate: ir.Value) -> ir.Value:
        return self.graph.node("Gelu", [gate], approximate="tanh")

    def _capped(self, logits: ir.Value) -> ir.Value:
        cap = self.gemma.final_cap
        if not cap:
            return logits
        curved = self.graph.node("Tanh", [self._times(logits, "logits_scale", 1 / cap)])
        return self._times(curved, "logits_cap", cap)

    def _times(self, x: ir.Value, name: str, factor: float) -> ir.Value:
        scale = self.graph.weight(name, np.array([factor], dtype=np.float32))
        return self.graph.node("Mul", [x, scale])
