"""The Llama-like decoder as an ONNX graph, every layer with its own widths.

The attention, norm and quantised operators are ONNX Runtime's contrib operators (docs/ContribOperators.md in its
repository).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from saap_edge.exporting.onnx_convolution import Convolutions
from saap_edge.exporting.onnx_deltanet import DeltaNets
from saap_edge.exporting.onnx_graph import GraphWriter
from saap_edge.exporting.packing import nibbles
from saap_edge.exporting.rope import rope_frequencies
from saap_edge.exporting.weights import ExportWeights
from saap_edge.families.rope import attention_factor
from saap_edge.model.blocks import BlockFormat, Blocks, joined
from saap_edge.model.spec import LayerShape, ModelSpec

__all__ = ["Decoder", "pack"]

CONTRIB = "com.microsoft"
# MatMulNBits accuracy_level: activations in 8 bits with the weights' block. Level 1, fp32, is several times slower.
INT8_ARITHMETIC = 4
KINDS = ("key", "value")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class Decoder:
    """Writes the Llama-like decoder to a GraphWriter, layer by layer; norms of q and k, and convolutions, too."""

    FFN_NORM = "post_attention_layernorm"

    def __init__(
        self, graph: GraphWriter, weights: ExportWeights, layout: tuple[BlockFormat, int] | None,
        format: str, stored: torch.dtype,
    ) -> None:  # fmt: skip
        """`layout`: format and group of the projections, None if these are floats. `format`: of the artifact, which
        tells those of embedding and head, used if projections are in blocks. `stored`: the type of float matrices."""
        self.graph, self.weights, self.spec, self.layout = graph, weights, weights.spec, layout
        self.format, self.stored, self.vocabulary = format, stored, weights.vocabulary(format)

    def build(self) -> None:
        """Append the whole model: inputs, layers, head, outputs."""
        graph = self.graph
        # transformers.js knows the name batch_size, and takes a dimension of another name for 0.
        ids = graph.input("input_ids", ir.DataType.INT64, ["batch_size", "seq"])
        mask = graph.input("attention_mask", ir.DataType.INT64, ["batch_size", "total"])
        self._sequence(ids, mask)
        embedded, table = self._embedding(ids)
        self._head(self._layers(embedded, ids), table)
        # The optional input comes last, so that input 0 is input_ids for callers that go by position.
        graph.inputs.append(self.logits_from)

    def _layers(self, embedded: ir.Value, ids: ir.Value) -> ir.Value:
        """The normed output of the last layer."""
        spec = self.spec
        normed = self.norm(embedded, "model.layers.0.input_layernorm.weight")
        residual, convolved = embedded, Convolutions(self, ids, self.lengths).output
        delta_net = DeltaNets(self, ids, self.lengths).output
        for index in range(len(spec.layers)):
            prefix = f"model.layers.{index}."
            layer = spec.layers[index]
            mixed = (convolved if layer.conv else delta_net if layer.linear else self._attention)(normed, index)
            normed, residual = self._skip_norm(residual, mixed, f"{prefix}{self.FFN_NORM}.weight")
            last = index + 1 == len(spec.layers)
            following = "model.norm.weight" if last else f"model.layers.{index + 1}.input_layernorm.weight"
            normed, residual = self._closed(residual, self._ffn(normed, prefix), index, following)
        return normed

    def place(self, index: int) -> int:
        """The number of a layer in the names of what it remembers."""
        return index

    def _closed(self, residual: ir.Value, x: ir.Value, index: int, following: str) -> tuple[ir.Value, ir.Value]:
        """Add what the FFN of layer `index` gives: the next norm, called `following`, of the sum, and the sum."""
        return self._skip_norm(residual, x, following)

    def _sequence(self, ids: ir.Value, mask: ir.Value) -> None:
        """Values that all attention nodes share: lengths from the mask, rotary tables, positions if needed."""
        graph, spec = self.graph, self.spec
        lengths = graph.node("ReduceSum", [mask, graph.constant("axis_1", [1])], keepdims=0)
        self.lengths = lengths
        last = graph.node("Sub", [lengths, graph.constant("one", 1)])
        self.seqlens = graph.node("Cast", [last], to=ir.DataType.INT32)
        total = graph.node("Gather", [graph.node("Shape", [mask]), graph.constant("index_1", 1)], axis=0)
        self.total = graph.node("Cast", [total], to=ir.DataType.INT32)
        whole = spec.rotary in (None, spec.head_dim)
        inside = whole and spec.head_dim % 16 == 0 and not spec.family.norms_after_rope  # attention itself can rotate
        turning = len(spec.unrotated) < len(spec.layers)
        self.positions = None if inside or not turning else self._positions(ids, lengths)
        self.rotary = self._rotary(spec) if turning else None

    def _rotary(self, spec: ModelSpec, suffix: str = "cache") -> tuple[ir.Value, ir.Value]:
        """Cosines and sines of every position, each [context, rotating dimensions of a head / 2]."""
        angles = np.outer(np.arange(spec.context, dtype=np.float32), self._frequencies(spec))
        factor = np.float32(attention_factor(spec.rope_scaling))
        cos = self.graph.weight(f"cos_{suffix}", factor * np.cos(angles), per_token=False)
        return cos, self.graph.weight(f"sin_{suffix}", factor * np.sin(angles), per_token=False)

    def _frequencies(self, spec: ModelSpec) -> np.ndarray:
        """Angle of each rotated pair per position."""
        return rope_frequencies(spec)

    def _positions(self, ids: ir.Value, lengths: ir.Value) -> ir.Value:
        """Positions int64 [batch, seq] of the new tokens, which end where the mask ends (right padding)."""
        graph = self.graph
        seq = graph.node("Gather", [graph.node("Shape", [ids]), graph.constant("index_seq", 1)], axis=0)
        start = graph.node("Max", [graph.node("Sub", [lengths, seq]), graph.constant("zero", 0)])
        steps = graph.node("Range", [graph.constant("range_from", 0), seq, graph.constant("range_by", 1)])
        return graph.node("Add", [graph.node("Unsqueeze", [start, graph.constant("column", [1])]), steps])

    def _rotate(self, x: ir.Value, heads: int, rotary: tuple[ir.Value, ir.Value]) -> ir.Value:
        """Rotary embedding outside of attention, whose own takes whole heads, of a multiple of 16, and comes last."""
        part = {} if self.spec.rotary in (None, self.spec.head_dim) else {"rotary_embedding_dim": self.spec.rotary}
        return self.graph.node("RotaryEmbedding", [x, self.positions, *rotary], CONTRIB, num_heads=heads, **part)

    def _embedding(self, ids: ir.Value) -> tuple[ir.Value, tuple[ir.Value, ...]]:
        """Token vectors, and the table (its weight, or codes and scales), which a tied head uses too."""
        table = self._vocabulary(EMBEDDING, per_token=self.spec.tied)
        return self._rows(ids, EMBEDDING, table, self.spec.hidden), table

    def _rows(self, ids: ir.Value, name: str, table: tuple[ir.Value, ...], width: int) -> ir.Value:
        """The rows of a table, each of `width` numbers."""
        if not self.layout:
            return self.graph.node("Gather", [table[0], ids])
        format, group = self._table_layout(width)
        codes = self.graph.alias(f"{name}.rows", table[0], (self.spec.vocab_size, width * format.bits // 8))
        return self.graph.node(
            "GatherBlockQuantized", [codes, ids, table[1]], CONTRIB, bits=format.bits, block_size=group, gather_axis=0,
            quantize_axis=1,
        )  # fmt: skip

    def _table_layout(self, width: int) -> tuple[BlockFormat, int]:
        """Format and group of embedding, head, and other tables of rows of `width`."""
        return self.vocabulary if width == self.spec.hidden else self.weights.vocabulary(self.format, width)

    def _head(self, normed: ir.Value, table: tuple[ir.Value, ...]) -> None:
        graph, spec = self.graph, self.spec
        self.logits_from = ir.Value(name="logits_from", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1]))
        graph.default(self.logits_from, np.array([0]))
        end, axis = graph.constant("end", [2**63 - 1]), graph.constant("axes_1", [1])
        normed = graph.node("Slice", [normed, self.logits_from, end, axis])
        table = table if spec.tied else self._vocabulary(HEAD, per_token=True)
        logits = self._by_table(normed, table)
        graph.output(self._capped(logits), "logits", ir.DataType.FLOAT, ["batch_size", "logits_seq", spec.vocab_size])
        # Logits come first, where callers that go by position expect them.
        graph.outputs.insert(0, graph.outputs.pop())

    def _by_table(self, x: ir.Value, table: tuple[ir.Value, ...]) -> ir.Value:
        """The product of states [batch, seq, hidden] with a matrix in the types of embedding and head."""
        if not self.layout:
            return self._matmul(x, table[0])
        return self._matmul_bits(x, table, None, (self.spec.hidden, self.vocabulary[0].bits, self.vocabulary[1]))

    def _capped(self, logits: ir.Value) -> ir.Value:
        return logits

    def _vocabulary(self, name: str, per_token: bool) -> tuple[ir.Value, ...]:
        """The matrix of embedding or head: (weight,) or, in blocks, (codes [vocab, blocks, bytes], scales)."""
        if not self.layout:
            return (self._floats(name, [name], per_token),)
        return self._blocks(name, [name], self._table_layout(self.weights.shape(name)[1]), per_token)

    def _blocks(
        self, name: str, parts: list[str], layout: tuple[BlockFormat, int], per_token: bool = True
    ) -> tuple[ir.Value, ...]:
        """Codes, scales and, if the format has them, zero points of the weights `parts`, stacked by rows."""
        blocks = joined([self.weights.blocks(part, *layout) for part in parts])
        named = zip(("codes", "scales", "zeros"), pack(blocks), strict=True)
        return tuple(
            self.graph.weight(f"{name}.{part}", array, per_token) for part, array in named if array is not None
        )

    def norm(self, x: ir.Value, name: str) -> ir.Value:
        return self.graph.node(
            "SimplifiedLayerNormalization", [x, self._scale(name)], axis=-1, epsilon=self.spec.rms_norm_eps
        )

    def _skip_norm(self, residual: ir.Value, x: ir.Value, name: str) -> tuple[ir.Value, ir.Value]:
        """(norm(residual + x), residual + x)."""
        outputs = self.graph.nodes(
            4, "SkipSimplifiedLayerNormalization", [residual, x, self._scale(name)], CONTRIB,
            epsilon=self.spec.rms_norm_eps,
        )  # fmt: skip
        outputs[1].name = outputs[2].name = ""  # mean and variance are not computed on CPU
        return outputs[0], outputs[3]

    def _scale(self, name: str) -> ir.Value:
        """The factors of a norm."""
        if self.spec.family.centred_norms and ".linear_attn." not in name:
            return self.graph.weight(name, 1 + self.weights.tensor(name).numpy())
        return self._plain(name)

    def _head_norm(self, x: ir.Value, name: str, heads: int, width: int | None = None) -> ir.Value:
        """Norm of every head of q or k. Attention has inputs for it, but not on CPU. `width`: of a head."""
        graph, width = self.graph, width or self.spec.head_dim
        apart = graph.node("Reshape", [x, graph.constant(f"{name}.heads", [0, 0, heads, width])])
        return graph.node("Reshape", [self.norm(apart, name), graph.constant(f"{name}.whole", [0, 0, heads * width])])

    def _attention(self, x: ir.Value, index: int) -> ir.Value:
        graph, spec, layer = self.graph, self.spec, self.spec.layers[index]
        prefix = f"model.layers.{index}.self_attn."
        packed = self.linear(x, f"{prefix}qkv_proj", [f"{prefix}{name}_proj" for name in "qkv"])
        place = self.place(index)
        past = [graph.input(f"past_key_values.{place}.{kind}", *self._cache(layer, "past")) for kind in KINDS]
        gate = None
        if spec.family.gated:
            packed, gate = self._gated(packed, prefix, layer)
        rotary, attributes = self._kind(index)
        fused, apart = (rotary, None) if self.positions is None else (None, rotary)
        states = [packed, None, None]
        if spec.family.qk_norm or apart:
            states = self._states(packed, prefix, layer, apart)
        outputs = graph.nodes(
            3, "GroupQueryAttention", [*states, *past, self.seqlens, self.total, *(fused or ())], CONTRIB,
            num_heads=layer.heads, kv_num_heads=layer.kv_heads, do_rotary=int(bool(fused)), **attributes,
        )  # fmt: skip
        for present, kind in zip(outputs[1:], KINDS, strict=True):
            graph.output(present, f"present.{place}.{kind}", *self._cache(layer, "total"))
        mixed = outputs[0]
        if gate is not None:
            mixed = graph.node("Mul", [mixed, graph.node("Sigmoid", [gate])])
        return self.linear(mixed, f"{prefix}o_proj")

    def _gated(self, packed: ir.Value, prefix: str, layer: LayerShape) -> tuple[ir.Value, ir.Value]:
        """Queries, keys and values, and the gates of all heads, which lie beside each head's query."""
        graph, width = self.graph, self.spec.head_dim
        sizes = graph.constant(f"{prefix}gated.widths", [2 * layer.heads * width, 2 * layer.kv_heads * width])
        both, others = graph.nodes(2, "Split", [packed, sizes], axis=-1)
        apart = graph.node("Reshape", [both, graph.constant(f"{prefix}gated.heads", [0, 0, layer.heads, 2 * width])])
        query, gate = graph.nodes(2, "Split", [apart], axis=-1, num_outputs=2)
        whole = graph.constant(f"{prefix}gated.whole", [0, 0, layer.heads * width])
        query, gate = (graph.node("Reshape", [each, whole]) for each in (query, gate))
        return graph.node("Concat", [query, others], axis=-1), gate

    def _states(
        self, packed: ir.Value, prefix: str, layer: LayerShape, rotary: tuple[ir.Value, ir.Value] | None
    ) -> list[ir.Value | None]:
        """Queries, keys and values, with the norms and rotations that attention cannot do itself."""
        widths = [heads * self.spec.head_dim for heads in (layer.heads, layer.kv_heads, layer.kv_heads)]
        sizes = self.graph.constant(f"{prefix}qkv.widths", widths)
        query, key, value = self.graph.nodes(3, "Split", [packed, sizes], axis=-1)
        late, norms = self.spec.family.norms_after_rope, self.spec.family.qk_norms or (None, None)
        states = []
        for x, heads, norm in ((query, layer.heads, norms[0]), (key, layer.kv_heads, norms[1])):
            weight = norm and f"{prefix.removesuffix('self_attn.')}{norm}.weight"
            if weight and not late:
                x = self._head_norm(x, weight, heads)
            if rotary:
                x = self._rotate(x, heads, rotary)
            if weight and late:
                x = self._head_norm(x, weight, heads)
            states.append(x)
        return [*states, value]

    def _kind(self, index: int) -> tuple[tuple[ir.Value, ir.Value] | None, dict[str, Any]]:
        """Rotary tables, None where nothing rotates, and attributes of a layer's attention."""
        rotary = None if index in self.spec.unrotated else self.rotary
        return rotary, {"scale": 1 / math.sqrt(self.spec.head_dim)}

    def _cache(self, layer: LayerShape, length: str) -> tuple[ir.DataType, list[int | str]]:
        return ir.DataType.FLOAT, ["batch_size", layer.kv_heads, length, self.spec.head_size(layer)]

    def _ffn(self, x: ir.Value, prefix: str) -> ir.Value:
        both = self.linear(x, f"{prefix}mlp.gate_up_proj", [f"{prefix}mlp.{name}_proj" for name in ("gate", "up")])
        gate, up = self.graph.nodes(2, "Split", [both], axis=-1, num_outputs=2)
        return self.linear(self.graph.node("Mul", [self._activation(gate), up]), f"{prefix}mlp.down_proj")

    def _activation(self, gate: ir.Value) -> ir.Value:
        return self.graph.node("QuickGelu", [gate], CONTRIB, alpha=1.0)  # x * sigmoid(x) in one pass: SiLU

    def linear(self, x: ir.Value, module: str, parts: list[str] | None = None) -> ir.Value:
        """A projection with its bias; with `parts`, these projections of one input as one product called `module`.

        With one product the input is rounded to 8 bits once, and threads are synchronised once.
        """
        parts = parts or [module]
        name, weights, bias = f"{module}.weight", [f"{part}.weight" for part in parts], self._bias(module, parts)
        if self.layout:
            layout = (self.weights.shape(weights[0])[1], self.layout[0].bits, self.layout[1])
            return self._matmul_bits(x, self._blocks(name, weights, self.layout), bias, layout)
        y = self._matmul(x, self._floats(name, weights))
        return y if bias is None else self.graph.node("Add", [y, bias])

    def _floats(self, name: str, parts: list[str], per_token: bool = True) -> ir.Value:
        """The matrices `parts` in floats, stacked by rows.

        Float16 is cast to float32 before the product. On x86 ONNX Runtime has no product in float16, and would widen
        weights and activations at every token; this cast of a constant it does once, when it loads the graph.
        """
        array = _stacked([self.weights.tensor(part, self.stored) for part in parts])
        if self.stored == torch.float32:
            return self.graph.weight(name, array, per_token)
        self.graph.bytes_per_token += 2 * array.nbytes if per_token else 0
        return self.graph.node("Cast", [self.graph.weight(name, array, per_token=False)], to=ir.DataType.FLOAT)

    def _matmul(self, x: ir.Value, weight: ir.Value) -> ir.Value:
        # FusedMatMul takes weights [out, in] as stored: no transposed copy is needed, and a tied table stays one.
        return self.graph.node("FusedMatMul", [x, weight], CONTRIB, transB=1)

    def _matmul_bits(
        self, x: ir.Value, weight: tuple[ir.Value, ...], bias: ir.Value | None, layout: tuple[int, int, int]
    ) -> ir.Value:
        """`weight` has codes, scales and perhaps zero points; `layout` its columns, bits and group."""
        rows = weight[0].shape
        assert rows is not None
        columns, bits, group = layout
        extra = [] if bias is None else [*[None] * (4 - len(weight)), bias]
        return self.graph.node(
            "MatMulNBits", [x, *weight, *extra], CONTRIB, K=columns, N=int(rows[0]), bits=bits,  # type: ignore[arg-type]
            block_size=group, accuracy_level=INT8_ARITHMETIC,
        )  # fmt: skip

    def _plain(self, name: str) -> ir.Value:
        return self.graph.weight(name, self.weights.tensor(name).numpy())

    def _bias(self, module: str, parts: list[str]) -> ir.Value | None:
        """The biases of `parts`, joined (`ExportWeights.bias`); None if no part has one."""
        bias = self.weights.bias(parts)
        return None if bias is None else self.graph.weight(f"{module}.bias", bias.numpy())


def _stacked(tensors: list[torch.Tensor]) -> np.ndarray:
    """The rows of all tensors. A single tensor, maybe a large vocabulary, is not copied."""
    array: np.ndarray = (tensors[0] if len(tensors) == 1 else torch.cat(tensors)).numpy()
    return array


def pack(blocks: Blocks) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """MatMulNBits' codes uint8 [out, blocks, bytes], scales float32 [out, blocks], and zero points uint8 [out, bytes].

    The last block is padded with zeros, which meet no input. No zero points: the operator's default, the middle code.
    """
    rows, count = blocks.scales.shape
    codes, missing = blocks.codes.numpy(), count * blocks.group - blocks.codes.shape[1]
    if missing:  # never of a vocabulary, whose codes are too large for copies
        codes = np.pad(codes, ((0, 0), (0, missing)))
    zeros = None if blocks.offsets is None else blocks.offsets.numpy()
    if blocks.format.bits == 4:
        codes = nibbles(codes)
        zeros = None if zeros is None else nibbles(np.pad(zeros, ((0, 0), (0, count % 2))))
    return codes.reshape(rows, count, -1), blocks.scales.float().numpy(), zeros
