"""What gated DeltaNets and Mamba-2 blocks share in an ONNX graph: a convolution, and states that leave out padding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from saap_edge.exporting.onnx_decoder import Decoder

__all__ = ["CONTRIB", "Recurrent", "Shape"]

CONTRIB = "com.microsoft"
Shape = list[int | str]


class Recurrent:
    """What layer N remembers are the inputs past.N.conv [batch_size, channels, taps - 1], the last tokens of what
    passes the convolution, and past.N.recurrent, the states of heads, zeros before a text; the outputs present.N.* are
    the same after the new tokens.

    The names are those of onnxruntime-genai's own graphs. In a batch, texts are padded on the right, as in attention:
    padding leaves a row's states as they are.
    """

    def __init__(self, decoder: Decoder, ids: ir.Value, lengths: ir.Value, taps: int) -> None:
        """`lengths`: tokens of each row so far, with the new ones, int64 [batch]. `taps`: 0: no layer has states."""
        self.decoder, self.graph, self.spec, self.taps = decoder, decoder.graph, decoder.spec, taps
        if taps:
            self._sequence(ids, lengths)

    def _sequence(self, ids: ir.Value, lengths: ir.Value) -> None:
        """Values that all layers share: which new tokens are padding, and where the last tokens of each row are."""
        graph = self.graph
        sizes = graph.node("Shape", [ids])
        self._batch = graph.node("Slice", [sizes, graph.constant("states.from", [0]), graph.constant("states.to", [1])])
        seq = graph.node("Gather", [sizes, graph.constant("states.axis", 1)], axis=0)
        new = graph.node("Unsqueeze", [graph.node("Min", [lengths, seq]), graph.constant("states.apart", [1, 2])])
        steps = graph.node("Range", [graph.constant("states.start", 0), seq, graph.constant("states.by", 1)])
        column = graph.node("Unsqueeze", [steps, graph.constant("states.column", [1])])
        self.text = graph.node("Cast", [graph.node("Less", [column, new])], to=ir.DataType.FLOAT)  # [batch, seq, 1]
        self._places = graph.node("Add", [new, graph.constant("states.places", list(range(self.taps - 1)))])

    def convolved(
        self, mixed: ir.Value, index: int, channels: int, kernel: ir.Value, bias: ir.Value | None = None
    ) -> ir.Value:
        """`mixed` [batch, seq, channels] behind its convolution, which each channel has alone, and SiLU."""
        graph, kept, place = self.graph, self.taps - 1, self.decoder.place(index)
        shape: Shape = ["batch_size", channels, kept]
        past = graph.input(f"past.{place}.conv", ir.DataType.FLOAT, shape)
        seen = graph.node("Concat", [past, graph.node("Transpose", [mixed], perm=[0, 2, 1])], axis=2)
        wide = graph.constant(f"past.{place}.kept", [channels, kept])
        places = graph.node("Expand", [self._places, graph.node("Concat", [self._batch, wide], axis=0)])
        present = graph.node("GatherElements", [seen, places], axis=2)
        graph.output(present, f"present.{place}.conv", ir.DataType.FLOAT, shape)
        inputs: list[ir.Value | None] = [seen, kernel, *([] if bias is None else [bias])]
        return graph.node("Transpose", [self.silu(graph.node("Conv", inputs, group=channels))], perm=[0, 2, 1])

    def shared(self, x: ir.Value, name: str, groups: int, times: int, width: int) -> ir.Value:
        """`x` [batch, seq, groups, width] with each group `times` times, as [batch, seq, all]."""
        if times > 1:
            x = self.graph.node("Unsqueeze", [x, self.graph.constant(f"{name}.axis", [3])])
            x = self.graph.node("Expand", [x, self.graph.constant(f"{name}.shared", [1, 1, 1, times, 1])])
        return self.graph.node("Reshape", [x, self.graph.constant(f"{name}.whole", [0, 0, groups * times * width])])

    def steps(self, x: ir.Value, name: str) -> tuple[ir.Value, ir.Value]:
        """softplus(x + dt_bias), and that times -exp(A_log): the logarithm of what a token leaves of a state.

        `x` [batch, seq, heads]. Both are 0 at padding, which leaves all.
        """
        graph, read = self.graph, self.decoder.weights.tensor
        bias = graph.weight(f"{name}.dt_bias", read(f"{name}.dt_bias").numpy())
        slope = graph.weight(f"{name}.slope", (-read(f"{name}.A_log").exp()).numpy())
        size = graph.node("Mul", [graph.node("Softplus", [graph.node("Add", [x, bias])]), self.text])
        return size, graph.node("Mul", [size, slope])

    def silu(self, x: ir.Value) -> ir.Value:
        return self.graph.node("QuickGelu", [x], CONTRIB, alpha=1.0)
