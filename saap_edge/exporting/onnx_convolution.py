"""Short convolutions in an ONNX graph, in plain operators, with what they remember as inputs and outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from saap_edge.exporting.onnx_decoder import Decoder

__all__ = ["Convolutions"]


class Convolutions:
    """Writes the convolutions of a decoder's layers. The input past.N.conv [batch_size, hidden, taps - 1] is what layer
    N gated of the tokens before, zeros before a text; the output present.N.conv is the same after the new tokens.

    The names are those of onnxruntime-genai's own graphs. In a batch, texts are padded on the right, as in attention:
    present.N.conv is of a row's own last tokens.
    """

    def __init__(self, decoder: Decoder, ids: ir.Value, lengths: ir.Value) -> None:
        """`lengths`: tokens of each row so far, with the new ones, int64 [batch]."""
        self.decoder, self.graph, self.spec = decoder, decoder.graph, decoder.spec
        self.kept = self.spec.taps - 1
        if self.spec.convolutions:
            self._last = self._columns(ids, lengths)

    def _columns(self, ids: ir.Value, lengths: ir.Value) -> ir.Value:
        """Places [batch, hidden, taps - 1] of what is remembered, in the kept and the new tokens together."""
        graph = self.graph
        sizes = graph.node("Shape", [ids])
        seq = graph.node("Gather", [sizes, graph.constant("conv.axis", 1)], axis=0)
        batch = graph.node("Slice", [sizes, graph.constant("conv.from", [0]), graph.constant("conv.to", [1])])
        new = graph.node("Unsqueeze", [graph.node("Min", [lengths, seq]), graph.constant("conv.apart", [1, 2])])
        places = graph.node("Add", [new, graph.constant("conv.places", list(range(self.kept)))])
        shape: list[ir.Value | None] = [batch, graph.constant("conv.shape", [self.spec.hidden, self.kept])]
        return graph.node("Expand", [places, graph.node("Concat", shape, axis=0)])

    def output(self, x: ir.Value, index: int) -> ir.Value:
        """What the convolution of a layer gives for its normed input `x` [batch, seq, hidden]."""
        graph, prefix = self.graph, f"model.layers.{index}.conv."
        gates = graph.node("Transpose", [self.decoder.linear(x, f"{prefix}in_proj")], perm=[0, 2, 1])
        before, after, value = graph.nodes(3, "Split", [gates], axis=1, num_outputs=3)
        shape: list[int | str] = ["batch_size", self.spec.hidden, self.kept]
        past = graph.input(f"past.{index}.conv", ir.DataType.FLOAT, shape)
        seen = graph.node("Concat", [past, graph.node("Mul", [before, value])], axis=2)
        present = graph.node("GatherElements", [seen, self._last], axis=2)
        graph.output(present, f"present.{index}.conv", ir.DataType.FLOAT, shape)
        kernel = graph.weight(f"{prefix}conv.weight", self.decoder.weights.tensor(f"{prefix}conv.weight").numpy())
        mixed = graph.node("Conv", [seen, kernel], group=self.spec.hidden)
        gated = graph.node("Transpose", [graph.node("Mul", [after, mixed])], perm=[0, 2, 1])
        return self.decoder.linear(gated, f"{prefix}out_proj")
