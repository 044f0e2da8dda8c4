"""Gemma 4 in ONNX: Gemma's graph with two sizes of heads, borrowed keys and values, and embeddings for every layer.

After transformers' modeling_gemma4.py. A layer that borrows has no inputs and outputs of a cache: its attention takes
the new and the past keys and values of the layer that lends them.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from saap_edge.exporting.gguf_gemma4 import full_head_dim, turning
from saap_edge.exporting.onnx_decoder import CONTRIB, KINDS
from saap_edge.exporting.onnx_gemma import GemmaDecoder
from saap_edge.exporting.rope import rope_frequencies
from saap_edge.model.inventory import PER_LAYER_MATRIX, PER_LAYER_NORM, PER_LAYER_TABLE
from saap_edge.model.spec import ModelSpec

__all__ = ["Gemma4Decoder"]


class Gemma4Decoder(GemmaDecoder):
    """Writes the decoder of a Gemma 4."""

    def _sequence(self, ids: ir.Value, mask: ir.Value) -> None:
        super()._sequence(ids, mask)
        if self.positions is None:  # queries of layers that borrow rotate alone
            self.positions = self._positions(ids, self.lengths)
        self.lent: dict[bool, list[ir.Value]] = {}
        self._ones: dict[int, ir.Value] = {}

    def _frequencies(self, spec: ModelSpec) -> np.ndarray:
        if spec is not self.spec:  # of layers with a window
            return rope_frequencies(spec)
        whole = rope_frequencies(replace(spec, head_dim=full_head_dim(spec)))
        return np.where(turning(spec) == 1, whole, 0).astype(np.float32)

    def _embedding(self, ids: ir.Value) -> tuple[ir.Value, tuple[ir.Value, ...]]:
        vectors, table = super()._embedding(ids)
        if self.spec.per_layer:
            self.own = self._own(ids, vectors)
        return vectors, table

    def _own(self, ids: ir.Value, vectors: ir.Value) -> list[ir.Value]:
        """The embedding of every layer [batch, seq, its size]: of the token, and of its embedding for all."""
        graph, spec, size, count = self.graph, self.spec, self.spec.per_layer, len(self.spec.layers)
        rows = self._rows(ids, PER_LAYER_TABLE, self._vocabulary(PER_LAYER_TABLE, per_token=False), size * count)
        token = self._times(rows, "per_layer_scale", math.sqrt(size))
        matrix = self._vocabulary(PER_LAYER_MATRIX, per_token=True)
        projected = self._times(self._by_table(vectors, matrix), "per_layer_matrix_scale", 1 / math.sqrt(spec.hidden))
        apart = graph.node("Reshape", [projected, graph.constant("per_layer.apart", [0, 0, count, size])])
        normed = graph.node(
            "Reshape", [self.norm(apart, PER_LAYER_NORM), graph.constant("per_layer.whole", [0, 0, count * size])]
        )
        both = self._times(graph.node("Add", [normed, token]), "per_layer_both_scale", 1 / math.sqrt(2))
        return graph.nodes(count, "Split", [both], axis=-1, num_outputs=count)

    def _attention(self, x: ir.Value, index: int) -> ir.Value:
        graph, layer, windowed = self.graph, self.spec.layers[index], self.gemma.windowed[index]
        prefix, width = f"model.layers.{index}.self_attn.", self.spec.head_size(layer)
        rotary, attributes = self._kind(index)
        assert rotary
        if layer.kv == "borrowed":
            query, (key, value, *past) = self.linear(x, f"{prefix}q_proj"), self.lent[windowed]
        else:
            packed = self.linear(x, f"{prefix}qkv_proj", [f"{prefix}{name}_proj" for name in "qkv"])
            sizes = [heads * width for heads in (layer.heads, layer.kv_heads, layer.kv_heads)]
            query, key, value = graph.nodes(3, "Split", [packed, graph.constant(f"{prefix}widths", sizes)], axis=-1)
            key = self._rotate(
                self._head_norm(key, f"{prefix}k_norm.weight", layer.kv_heads, width), layer.kv_heads, rotary
            )
            value = self._plain_norm(value, f"{prefix}v_norm", layer.kv_heads, width)
            past = [graph.input(f"past_key_values.{index}.{kind}", *self._cache(layer, "past")) for kind in KINDS]
            self.lent[windowed] = [key, value, *past]
        query = self._rotate(self._head_norm(query, f"{prefix}q_norm.weight", layer.heads, width), layer.heads, rotary)
        outputs = graph.nodes(
            3, "GroupQueryAttention", [query, key, value, *past, self.seqlens, self.total], CONTRIB,
            num_heads=layer.heads, kv_num_heads=layer.kv_heads, do_rotary=0, **attributes,
        )  # fmt: skip
        if layer.kv != "borrowed":
            for present, kind in zip(outputs[1:], KINDS, strict=True):
                graph.output(present, f"present.{index}.{kind}", *self._cache(layer, "total"))
        return self.norm(self.linear(outputs[0], f"{prefix}o_proj"), f"model.layers.{index}.{self.MIXED_NORM}.weight")

    def _plain_norm(self, x: ir.Value, name: str, heads: int, width: int) -> ir.Value:
        """Norm of every head, without weights."""
        graph = self.graph
        if width not in self._ones:
            self._ones[width] = graph.weight(f"ones_{width}", np.ones(width, dtype=np.float32))
        apart = graph.node("Reshape", [x, graph.constant(f"{name}.heads", [0, 0, heads, width])])
        normed = graph.node(
            "SimplifiedLayerNormalization", [apart, self._ones[width]], axis=-1, epsilon=self.spec.rms_norm_eps
        )
        return graph.node("Reshape", [normed, graph.constant(f"{name}.whole", [0, 0, heads * width])])

    def _closed(self, residual: ir.Value, x: ir.Value, index: int, following: str) -> tuple[ir.Value, ir.Value]:
        """The layer's own embedding comes in, and a factor on all."""
        graph, prefix = self.graph, f"model.layers.{index}."
        total = graph.node("Add", [residual, x])
        if self.spec.per_layer:
            gate = self._activation(self.linear(total, f"{prefix}per_layer_input_gate"))
            added = self.linear(graph.node("Mul", [gate, self.own[index]]), f"{prefix}per_layer_projection")
            normed = self.norm(added, f"{prefix}post_per_layer_input_norm.weight")
            total = graph.node("Add", [total, normed])
        total = graph.node("Mul", [total, self._plain(f"{prefix}layer_scalar")])
        return self.norm(total, following), total
