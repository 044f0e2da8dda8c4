"""Gated DeltaNets in an ONNX graph: ONNX Runtime's LinearAttention, and plain operators around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import torch

if TYPE_CHECKING:
    from saap_edge.exporting.onnx_decoder import Decoder

__all__ = ["DeltaNets"]

CONTRIB = "com.microsoft"
LENGTH_EPS = 1e-6  # added to the squared lengths of queries and keys
Shape = list[int | str]


class DeltaNets:
    """Writes the DeltaNets of a decoder's layers. What layer N remembers are the inputs past.N.conv [batch_size,
    channels, taps - 1], the last tokens' queries, keys and values, and past.N.recurrent [batch_size, value heads, keys,
    values], zeros before a text; the outputs present.N.* are the same after the new tokens.

    The names are those of onnxruntime-genai's own graphs. In a batch, texts are padded on the right, as in attention:
    padding leaves a row's states as they are.
    """

    def __init__(self, decoder: Decoder, ids: ir.Value, lengths: ir.Value) -> None:
        """`lengths`: tokens of each row so far, with the new ones, int64 [batch]."""
        self.decoder, self.graph, self.spec = decoder, decoder.graph, decoder.spec
        if self.spec.delta and any(layer.linear for layer in self.spec.layers):
            self._sequence(ids, lengths)

    def _sequence(self, ids: ir.Value, lengths: ir.Value) -> None:
        """Values that all DeltaNets share: which new tokens are padding, and where the last tokens of each row are."""
        graph = self.graph
        sizes = graph.node("Shape", [ids])
        self._batch = graph.node("Slice", [sizes, graph.constant("delta.from", [0]), graph.constant("delta.to", [1])])
        seq = graph.node("Gather", [sizes, graph.constant("delta.axis", 1)], axis=0)
        new = graph.node("Unsqueeze", [graph.node("Min", [lengths, seq]), graph.constant("delta.apart", [1, 2])])
        steps = graph.node("Range", [graph.constant("delta.start", 0), seq, graph.constant("delta.by", 1)])
        column = graph.node("Unsqueeze", [steps, graph.constant("delta.column", [1])])
        self._text = graph.node("Cast", [graph.node("Less", [column, new])], to=ir.DataType.FLOAT)  # [batch, seq, 1]
        assert self.spec.delta
        self._places = graph.node("Add", [new, graph.constant("delta.places", list(range(self.spec.delta.taps - 1)))])

    def output(self, x: ir.Value, index: int) -> ir.Value:
        """What the DeltaNet of a layer gives for its normed input `x` [batch, seq, hidden]."""
        graph, delta, layer = self.graph, self.spec.delta, self.spec.layers[index]
        assert delta
        name = f"model.layers.{index}.linear_attn"
        keys, values, heads = layer.kv_heads * delta.keys, layer.heads * delta.values, layer.heads
        packed = self.decoder.linear(x, f"{name}.in_proj", [f"{name}.in_proj_{letter}" for letter in "qkvzba"])
        sizes = graph.constant(f"{name}.sizes", [2 * keys + values, values, heads, heads])
        mixed, gate, rate, fading = graph.nodes(4, "Split", [packed, sizes], axis=-1)
        parts = graph.constant(f"{name}.parts", [keys, keys, values])
        query, key, value = graph.nodes(3, "Split", [self._convolved(mixed, index, 2 * keys + values), parts], axis=-1)
        query, key = (self._unit(each, index, part) for each, part in ((query, "q"), (key, "k")))
        state: Shape = ["batch_size", heads, delta.keys, delta.values]
        past = graph.input(f"past.{index}.recurrent", ir.DataType.FLOAT, state)
        rate = graph.node("Mul", [graph.node("Sigmoid", [rate]), self._text])
        mixed, present = graph.nodes(
            2, "LinearAttention", [query, key, value, past, self._decay(fading, name), rate], CONTRIB,
            q_num_heads=heads, kv_num_heads=heads, update_rule="gated_delta",
        )  # fmt: skip
        graph.output(present, f"present.{index}.recurrent", ir.DataType.FLOAT, state)
        apart = graph.constant(f"{name}.heads", [0, 0, heads, delta.values])
        normed = self.decoder.norm(graph.node("Reshape", [mixed, apart]), f"{name}.norm.weight")
        whole = graph.node("Reshape", [normed, graph.constant(f"{name}.whole", [0, 0, values])])
        return self.decoder.linear(graph.node("Mul", [whole, self._silu(gate)]), f"{name}.out_proj")

    def _convolved(self, mixed: ir.Value, index: int, channels: int) -> ir.Value:
        """Queries, keys and values [batch, seq, channels] behind their convolution, which each channel has alone."""
        graph, delta, prefix = self.graph, self.spec.delta, f"model.layers.{index}.linear_attn."
        assert delta
        kept: Shape = ["batch_size", channels, delta.taps - 1]
        past = graph.input(f"past.{index}.conv", ir.DataType.FLOAT, kept)
        seen = graph.node("Concat", [past, graph.node("Transpose", [mixed], perm=[0, 2, 1])], axis=2)
        wide = graph.constant(f"{prefix}kept", [channels, delta.taps - 1])
        places = graph.node("Expand", [self._places, graph.node("Concat", [self._batch, wide], axis=0)])
        present = graph.node("GatherElements", [seen, places], axis=2)
        graph.output(present, f"present.{index}.conv", ir.DataType.FLOAT, kept)
        kernels = [self.decoder.weights.tensor(f"{prefix}conv_{letter}.weight") for letter in "qkv"]
        kernel = graph.weight(f"{prefix}conv.weight", torch.cat(kernels).numpy())
        return graph.node("Transpose", [self._silu(graph.node("Conv", [seen, kernel], group=channels))], perm=[0, 2, 1])

    def _unit(self, x: ir.Value, index: int, part: str) -> ir.Value:
        """Queries or keys of length 1, one for each value head: those of a key head for all that share it."""
        graph, delta, layer = self.graph, self.spec.delta, self.spec.layers[index]
        assert delta
        name, shared = f"model.layers.{index}.linear_attn.{part}", layer.heads // layer.kv_heads
        scale = graph.weight(f"{name}.scale", np.full(delta.keys, delta.keys**-0.5, dtype=np.float32))
        apart = graph.node("Reshape", [x, graph.constant(f"{name}.heads", [0, 0, layer.kv_heads, delta.keys])])
        unit = graph.node(
            "SimplifiedLayerNormalization", [apart, scale], axis=-1, epsilon=LENGTH_EPS / delta.keys
        )  # x / sqrt(mean of squares + eps / keys), times 1 / sqrt(keys)
        if shared > 1:
            unit = graph.node("Unsqueeze", [unit, graph.constant(f"{name}.axis", [3])])
            unit = graph.node("Expand", [unit, graph.constant(f"{name}.shared", [1, 1, 1, shared, 1])])
        return graph.node("Reshape", [unit, graph.constant(f"{name}.whole", [0, 0, layer.heads * delta.keys])])

    def _decay(self, fading: ir.Value, name: str) -> ir.Value:
        """Logarithm [batch, seq, value heads] of what a token leaves of a state; 0 at padding, which leaves all."""
        graph, read = self.graph, self.decoder.weights.tensor
        bias = graph.weight(f"{name}.dt_bias", read(f"{name}.dt_bias").numpy())
        slope = graph.weight(f"{name}.slope", (-read(f"{name}.A_log").exp()).numpy())
        steep = graph.node("Mul", [graph.node("Softplus", [graph.node("Add", [fading, bias])]), slope])
        return graph.node("Mul", [steep, self._text])

    def _silu(self, x: ir.Value) -> ir.Value:
        return self.graph.node("QuickGelu", [x], CONTRIB, alpha=1.0)
