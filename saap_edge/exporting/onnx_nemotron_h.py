"""Nemotron-H as an ONNX graph: blocks of one sublayer each. A Mamba-2 is ONNX Runtime's LinearAttention with decay."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from saap_edge.exporting.onnx_decoder import Decoder
from saap_edge.exporting.onnx_states import CONTRIB, Recurrent, Shape

__all__ = ["NemotronDecoder"]


class NemotronDecoder(Decoder):
    """Writes blocks, each of which has a norm and a Mamba-2, attention or an FFN without gate.

    FFNs remember nothing: only the other blocks are counted in the names of inputs and outputs, as onnxruntime-genai
    wants it.
    """

    def place(self, index: int) -> int:
        """The number of blocks before this one that remember something."""
        return sum(not layer.ffn for layer in self.spec.layers[:index])

    def _layers(self, embedded: ir.Value, ids: ir.Value) -> ir.Value:
        """The normed output of the last block."""
        layers, mambas = self.spec.layers, _Mambas(self, ids)
        norms = [
            f"model.layers.{index}.{self.FFN_NORM if layer.ffn else 'input_layernorm'}.weight"
            for index, layer in enumerate(layers)
        ]
        normed, residual = self.norm(embedded, norms[0]), embedded
        for index, following in enumerate([*norms[1:], "model.norm.weight"]):
            if layers[index].ffn:
                given = self._ffn(normed, f"model.layers.{index}.")
            else:
                given = (mambas.output if layers[index].mamba else self._attention)(normed, index)
            normed, residual = self._skip_norm(residual, given, following)
        return normed

    def _ffn(self, x: ir.Value, prefix: str) -> ir.Value:
        active = self.graph.node("Relu", [self.linear(x, f"{prefix}mlp.up_proj")])
        return self.linear(self.graph.node("Mul", [active, active]), f"{prefix}mlp.down_proj")


class _Mambas(Recurrent):
    """Writes Mamba-2 blocks. past.N.recurrent is [batch_size, heads, states, width].

    A head's keys are what is written to its states (B), its queries what reads them (C), and its values its channels,
    times the time step.
    """

    def __init__(self, decoder: Decoder, ids: ir.Value) -> None:
        mamba = decoder.spec.mamba
        super().__init__(decoder, ids, decoder.lengths, mamba.taps if mamba else 0)

    def output(self, x: ir.Value, index: int) -> ir.Value:
        """What a block gives for its normed input `x` [batch, seq, hidden]."""
        graph, mamba, name = self.graph, self.spec.mamba, f"model.layers.{index}.mamba"
        assert mamba
        heads, states, inner, shared = mamba.heads, mamba.states, mamba.inner, mamba.groups * mamba.states
        sizes = graph.constant(f"{name}.sizes", [inner, mamba.convolved, heads])
        gate, mixed, steps = graph.nodes(3, "Split", [self.decoder.linear(x, f"{name}.in_proj"), sizes], axis=-1)
        read = self.decoder.weights.tensor
        kernel = graph.weight(f"{name}.conv1d.weight", read(f"{name}.conv1d.weight").numpy())
        bias = graph.weight(f"{name}.conv1d.bias", read(f"{name}.conv1d.bias").numpy()) if mamba.conv_bias else None
        mixed = self.convolved(mixed, index, mamba.convolved, kernel, bias)
        parts = graph.constant(f"{name}.parts", [inner, shared, shared])
        value, key, query = graph.nodes(3, "Split", [mixed, parts], axis=-1)
        key, query = (self._of_heads(each, f"{name}.{part}") for each, part in ((key, "b"), (query, "c")))
        apart, whole = (graph.constant(f"{name}.{word}", size) for word, size in self._shapes())
        value = graph.node("Reshape", [value, apart])
        size, decay = self.steps(steps, name)
        size = graph.node("Unsqueeze", [size, graph.constant(f"{name}.axis", [3])])
        written = graph.node("Reshape", [graph.node("Mul", [value, size]), whole])
        state: Shape = ["batch_size", heads, states, mamba.width]
        place = self.decoder.place(index)
        past = graph.input(f"past.{place}.recurrent", ir.DataType.FLOAT, state)
        given, present = graph.nodes(
            2, "LinearAttention", [query, key, written, past, decay], CONTRIB, q_num_heads=heads, kv_num_heads=heads,
            update_rule="gated", scale=1.0,
        )  # fmt: skip
        graph.output(present, f"present.{place}.recurrent", ir.DataType.FLOAT, state)
        skip = graph.weight(f"{name}.D", read(f"{name}.D")[:, None].numpy())
        passed = graph.node("Reshape", [graph.node("Mul", [value, skip]), whole])
        gated = graph.node("Mul", [graph.node("Add", [given, passed]), self.silu(gate)])
        return self.decoder.linear(self._normed(gated, name), f"{name}.out_proj")

    def _shapes(self) -> tuple[tuple[str, list[int]], tuple[str, list[int]]]:
        assert self.spec.mamba
        mamba = self.spec.mamba
        return ("heads", [0, 0, mamba.heads, mamba.width]), ("whole", [0, 0, mamba.inner])

    def _of_heads(self, x: ir.Value, name: str) -> ir.Value:
        """What each head writes or reads: that of its group."""
        mamba = self.spec.mamba
        assert mamba
        groups, times = mamba.groups, mamba.heads // mamba.groups
        apart = self.graph.node("Reshape", [x, self.graph.constant(f"{name}.groups", [0, 0, groups, mamba.states])])
        return self.shared(apart, name, groups, times, mamba.states)

    def _normed(self, x: ir.Value, name: str) -> ir.Value:
        """`x` [batch, seq, inner] with the norm of each group by itself."""
        graph, mamba = self.graph, self.spec.mamba
        assert mamba
        width = mamba.inner // mamba.groups
        apart = graph.node("Reshape", [x, graph.constant(f"{name}.grouped", [0, 0, mamba.groups, width])])
        ones = graph.weight(f"{name}.ones", np.ones(width, dtype=np.float32))
        normed = graph.node("SimplifiedLayerNormalization", [apart, ones], axis=-1, epsilon=self.spec.rms_norm_eps)
        whole = graph.node("Reshape", [normed, graph.constant(f"{name}.ungrouped", [0, 0, mamba.inner])])
        scale = graph.weight(f"{name}.norm.weight", self.decoder.weights.tensor(f"{name}.norm.weight").numpy())
        return graph.node("Mul", [whole, scale])
