"""Gated DeltaNets in an ONNX graph: ONNX Runtime's LinearAttention, and plain operators around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import torch

from saap_edge.exporting.onnx_states import CONTRIB, Recurrent, Shape

if TYPE_CHECKING:
    from saap_edge.exporting.onnx_decoder import Decoder

__all__ = ["DeltaNets"]

LENGTH_EPS = 1e-6  # added to the squared lengths of queries and keys


class DeltaNets(Recurrent):
    """Writes the DeltaNets of a decoder's layers. past.N.recurrent is [batch_size, value heads, keys, values]."""

    def __init__(self, decoder: Decoder, ids: ir.Value, lengths: ir.Value) -> None:
        delta = decoder.spec.delta
        there = delta and any(layer.linear for layer in decoder.spec.layers)
        super().__init__(decoder, ids, lengths, delta.taps if delta and there else 0)

    def output(self, x: ir.Value, index: int) -> ir.Value:
        """What the DeltaNet of a layer gives for its normed input `x` [batch, seq, hidden]."""
        graph, delta, layer = self.graph, self.spec.delta, self.spec.layers[index]
        assert delta
        name = f"model.layers.{index}.linear_attn"
        keys, values, heads = layer.kv_heads * delta.keys, layer.heads * delta.values, layer.heads
        packed = self.decoder.linear(x, f"{name}.in_proj", [f"{name}.in_proj_{letter}" for letter in "qkvzba"])
        sizes = graph.constant(f"{name}.sizes", [2 * keys + values, values, heads, heads])
        mixed, gate, rate, fading = graph.nodes(4, "Split", [packed, sizes], axis=-1)
        kernels = [self.decoder.weights.tensor(f"{name}.conv_{letter}.weight") for letter in "qkv"]
        kernel = graph.weight(f"{name}.conv.weight", torch.cat(kernels).numpy())
        mixed = self.convolved(mixed, index, 2 * keys + values, kernel)
        parts = graph.constant(f"{name}.parts", [keys, keys, values])
        query, key, value = graph.nodes(3, "Split", [mixed, parts], axis=-1)
        query, key = (self._unit(each, index, part) for each, part in ((query, "q"), (key, "k")))
        state: Shape = ["batch_size", heads, delta.keys, delta.values]
        past = graph.input(f"past.{index}.recurrent", ir.DataType.FLOAT, state)
        rate = graph.node("Mul", [graph.node("Sigmoid", [rate]), self.text])
        mixed, present = graph.nodes(
            2, "LinearAttention", [query, key, value, past, self.steps(fading, name)[1], rate], CONTRIB,
            q_num_heads=heads, kv_num_heads=heads, update_rule="gated_delta",
        )  # fmt: skip
        graph.output(present, f"present.{index}.recurrent", ir.DataType.FLOAT, state)
        apart = graph.constant(f"{name}.heads", [0, 0, heads, delta.values])
        normed = self.decoder.norm(graph.node("Reshape", [mixed, apart]), f"{name}.norm.weight")
        whole = graph.node("Reshape", [normed, graph.constant(f"{name}.whole", [0, 0, values])])
        return self.decoder.linear(graph.node("Mul", [whole, self.silu(gate)]), f"{name}.out_proj")

    def _unit(self, x: ir.Value, index: int, part: str) -> ir.Value:
        """Queries or keys of length 1, one for each value head: those of a key head for all that share it."""
        graph, delta, layer = self.graph, self.spec.delta, self.spec.layers[index]
        assert delta
        name = f"model.layers.{index}.linear_attn.{part}"
        scale = graph.weight(f"{name}.scale", np.full(delta.keys, delta.keys**-0.5, dtype=np.float32))
        apart = graph.node("Reshape", [x, graph.constant(f"{name}.heads", [0, 0, layer.kv_heads, delta.keys])])
        unit = graph.node(
            "SimplifiedLayerNormalization", [apart, scale], axis=-1, epsilon=LENGTH_EPS / delta.keys
        )  # x / sqrt(mean of squares + eps / keys), times 1 / sqrt(keys)
        return self.shared(unit, name, layer.kv_heads, layer.heads // layer.kv_heads, delta.keys)
