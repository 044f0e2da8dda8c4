"""The Llama-like decoder as an OpenVINO model, every layer with its own widths.

Inputs, names and the KV cache as state are those that OpenVINO GenAI's LLMPipeline takes. Norms, rotations, attention
and compressed products have the shapes that its CPU plugin fuses, and that GenAI turns into paged attention.
"""

from __future__ import annotations

import math
from typing import Any

from saap_edge.engines.lazy import lazy_import
from saap_edge.exporting.openvino_graph import OpenvinoGraph
from saap_edge.exporting.rope import rope_frequencies
from saap_edge.exporting.weights import ExportWeights
from saap_edge.families.rope import attention_factor
from saap_edge.model.blocks import BlockFormat, joined
from saap_edge.model.spec import LayerShape

__all__ = ["OpenvinoDecoder"]

ov, ops = lazy_import("openvino"), lazy_import("openvino.opset13")
KINDS = ("key", "value")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
HIDDEN = -65504.0  # added to scores of tokens that are not seen: minus infinity would make rows of padding undefined


class OpenvinoDecoder:
    """Writes the Llama-like decoder, with or without norms of q and k, to an OpenvinoGraph, layer by layer."""

    def __init__(
        self, graph: OpenvinoGraph, weights: ExportWeights, layout: tuple[BlockFormat, int],
        vocabulary: tuple[BlockFormat, int],
    ) -> None:  # fmt: skip
        """`layout`: format and group of the projections. `vocabulary`: those of embedding and head."""
        self.graph, self.weights, self.spec, self.layout = graph, weights, weights.spec, layout
        self.vocabulary = vocabulary

    def build(self) -> Any:
        """The whole model: inputs, layers, head, outputs."""
        parameters = [self._input(name, "i64", 2) for name in ("input_ids", "attention_mask", "position_ids")]
        ids, mask, positions = parameters
        parameters.append(self._input("beam_idx", "i32", 1))
        self.beams = parameters[-1]
        self._sequence(ids, mask, positions)
        table = self._vocabulary(EMBEDDING, per_token=self.spec.tied)
        residual = ops.gather(table, ids, self.graph.integer(0))
        for index in range(len(self.spec.layers)):
            prefix = f"model.layers.{index}."
            attended = self._attention(self._norm(residual, f"{prefix}input_layernorm.weight"), index)
            residual = ops.add(residual, attended)
            normed = self._norm(residual, f"{prefix}post_attention_layernorm.weight")
            residual = ops.add(residual, self._ffn(normed, prefix))
        normed = self._norm(residual, "model.norm.weight")
        table = table if self.spec.tied else self._vocabulary(HEAD, per_token=True)
        logits = ops.matmul(normed, table, False, True)
        logits.output(0).set_names({"logits"})
        return ov.Model([ops.result(logits)], self.graph.sinks, parameters, "decoder")

    def _input(self, name: str, type: str, rank: int) -> Any:
        parameter = ops.parameter([-1] * rank, getattr(ov.Type, type))
        parameter.set_friendly_name(name)  # by which GenAI finds it
        parameter.output(0).set_names({name})
        return parameter

    def _sequence(self, ids: Any, mask: Any, positions: Any) -> None:
        """What all layers share: the batch, the mask of attention, cosines and sines."""
        graph = self.graph
        self.batch = self._size(ids, 0)
        new, total = self._size(ids, 1), self._size(mask, 1)
        axis = graph.integer(0)
        keys = ops.range(graph.integer(0), ops.squeeze(total, axis), graph.integer(1), ov.Type.i64)
        start = ops.squeeze(ops.subtract(total, new), axis)
        queries = ops.range(start, ops.squeeze(total, axis), graph.integer(1), ov.Type.i64)
        past = ops.less_equal(ops.unsqueeze(keys, graph.integers(0)), ops.unsqueeze(queries, graph.integers(1)))
        given = ops.unsqueeze(ops.convert(mask, ov.Type.boolean), graph.integers(1, 2))
        seen = ops.logical_and(ops.unsqueeze(past, graph.integers(0, 1)), given)
        self.mask = ops.select(seen, graph.number(0.0), graph.number(HIDDEN))
        frequencies = graph.weight("rotary_frequencies", rope_frequencies(self.spec)[None, :, None], per_token=False)
        whole = ops.concat([self.batch, graph.integers(1, 1)], 0)
        placed = ops.convert(ops.unsqueeze(positions, graph.integers(1)), ov.Type.f32)
        angles = ops.matmul(ops.broadcast(frequencies, whole, broadcast_spec="BIDIRECTIONAL"), placed, False, False)
        angles = ops.transpose(angles, graph.integers(0, 2, 1))
        angles = ops.concat([angles, angles], -1)
        self.cos, self.sin = (self._factored(part(angles)) for part in (ops.cos, ops.sin))

    def _factored(self, curve: Any) -> Any:
        factor = attention_factor(self.spec.rope_scaling)
        curve = curve if factor == 1 else ops.multiply(curve, self.graph.number(factor))
        return ops.unsqueeze(curve, self.graph.integers(1))

    def _size(self, value: Any, axis: int) -> Any:
        """A dimension of a value, int64 [1]."""
        return ops.gather(ops.shape_of(value, "i64"), self.graph.integers(axis), self.graph.integer(0))

    def _vocabulary(self, name: str, per_token: bool) -> Any:
        """The matrix of embedding or head."""
        return self.graph.decompressed(name, self.weights.blocks(name, *self.vocabulary), per_token)

    def _norm(self, x: Any, name: str) -> Any:
        graph, last = self.graph, self.graph.integers(-1)
        mean = ops.reduce_mean(ops.power(x, graph.number(2.0)), last, True)
        root = ops.sqrt(ops.add(mean, graph.number(self.spec.rms_norm_eps)))
        scaled = ops.multiply(x, ops.divide(graph.number(1.0), root))
        return ops.multiply(scaled, graph.weight(name, self.weights.tensor(name).numpy()))

    def _attention(self, x: Any, index: int) -> Any:
        graph, spec, layer = self.graph, self.spec, self.spec.layers[index]
        prefix = f"model.layers.{index}.self_attn."
        packed = self.linear(x, f"{prefix}qkv_proj", [f"{prefix}{name}_proj" for name in "qkv"])
        counts = (layer.heads, layer.kv_heads, layer.kv_heads)
        sizes = graph.integers(*(count * spec.head_dim for count in counts))
        split = ops.variadic_split(packed, graph.integer(-1), sizes)
        heads = [self._heads(split.output(at), index, at, count) for at, count in enumerate(counts)]
        query, key = heads[:2] if index in spec.unrotated else map(self._rotated, heads[:2])
        if spec.family.norms_after_rope:
            query, key = self._head_norm(query, index, 0), self._head_norm(key, index, 1)
        past = [
            self._cached(value, f"{index}.{kind}", layer) for value, kind in zip((key, heads[2]), KINDS, strict=True)
        ]
        scale = graph.number(1 / math.sqrt(spec.head_dim))
        attended = ops.scaled_dot_product_attention(
            query, *(self._repeated(value, layer) for value in past), self.mask, scale
        )
        merged = ops.reshape(
            ops.transpose(attended, graph.integers(0, 2, 1, 3)), graph.integers(0, 0, layer.heads * spec.head_dim), True
        )
        return self.linear(merged, f"{prefix}o_proj")

    def _heads(self, x: Any, index: int, at: int, count: int) -> Any:
        """[batch, heads, tokens, head_dim] of queries (`at` 0), keys or values, with norms of q and k before rope."""
        apart, family = ops.reshape(x, self.graph.integers(0, 0, count, self.spec.head_dim), True), self.spec.family
        if family.qk_norm and not family.norms_after_rope and at < 2:
            apart = self._head_norm(apart, index, at)
        return ops.transpose(apart, self.graph.integers(0, 2, 1, 3))

    def _head_norm(self, x: Any, index: int, at: int) -> Any:
        """The norm of every head of queries (`at` 0) or keys."""
        return self._norm(x, f"model.layers.{index}.{self.spec.family.qk_norms[at]}.weight")

    def _rotated(self, x: Any) -> Any:
        graph, half = self.graph, self.spec.head_dim // 2
        end, one, last = graph.integers(2**31 - 1), graph.integers(1), graph.integers(3)
        second = ops.slice(x, graph.integers(half), end, one, last)
        turned = ops.concat(
            [
                ops.multiply(second, graph.number(-1.0)),
                ops.slice(x, graph.integers(0), graph.integers(half), one, last),
            ],
            -1,
        )
        return ops.add(ops.multiply(x, self.cos), ops.multiply(turned, self.sin))

    def _cached(self, new: Any, name: str, layer: LayerShape) -> Any:
        """Keys or values of the past and the new ones, which become the state."""
        graph = self.graph
        empty = ops.concat([self.batch, graph.integers(layer.kv_heads, 0, self.spec.head_dim)], 0)
        variable = ov.op.util.Variable(self._variable(f"past_key_values.{name}present.{name}", layer))
        read = ops.read_value(ops.broadcast(graph.number(0.0), empty), variable)
        whole = ops.concat([ops.gather(read, self.beams, graph.integer(0)), new], 2)
        graph.sinks.append(ops.assign(whole, variable))
        return whole

    def _variable(self, name: str, layer: LayerShape) -> Any:
        info = ov.op.util.VariableInfo()
        info.variable_id, info.data_type = name, ov.Type.f32
        info.data_shape = ov.PartialShape([-1, layer.kv_heads, -1, self.spec.head_dim])
        return info

    def _repeated(self, x: Any, layer: LayerShape) -> Any:
        """Every kv head once for each of its queries."""
        shared = layer.heads // layer.kv_heads
        if shared == 1:
            return x
        graph, width = self.graph, self.spec.head_dim
        whole = ops.concat(
            [self._size(x, 0), graph.integers(layer.kv_heads, shared), self._size(x, 2), graph.integers(width)], 0
        )
        spread = ops.broadcast(ops.unsqueeze(x, graph.integer(2)), whole, broadcast_spec="BIDIRECTIONAL")
        return ops.reshape(spread, graph.integers(0, layer.heads, -1, width), True)

    def _ffn(self, x: Any, prefix: str) -> Any:
        both = self.linear(x, f"{prefix}mlp.gate_up_proj", [f"{prefix}mlp.{name}_proj" for name in ("gate", "up")])
        split = ops.split(both, self.graph.integer(-1), 2)
        return self.linear(ops.multiply(ops.swish(split.output(0)), split.output(1)), f"{prefix}mlp.down_proj")

    def linear(self, x: Any, module: str, parts: list[str] | None = None) -> Any:
        """A projection with its bias; with `parts`, these projections of one input as one product called `module`."""
        parts = parts or [module]
        blocks = joined([self.weights.blocks(f"{part}.weight", *self.layout) for part in parts])
        y, bias = (
            ops.matmul(x, self.graph.decompressed(f"{module}.weight", blocks), False, True),
            self.weights.bias(parts),
        )
        return y if bias is None else ops.add(y, self.graph.weight(f"{module}.bias", bias.numpy()))
