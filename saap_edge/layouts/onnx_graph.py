"""Our ONNX graph as runtimes in JavaScript want it: other names, and no operator that a browser lacks.

The graph is edited in place of being exported again: its weights are not read, and their file is only given another
name. What an exported folder holds for other runtimes stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from saap_edge.errors import SaapError

__all__ = ["KEEP", "rewrite", "standard_embedding", "unpacked_bytes", "unpacked_products"]

KEEP = "num_logits_to_keep"  # transformers.js gives it where a graph has it: 1 while it writes, 0 for all logits
_FROM, _PACKED = "logits_from", "MatMulNBits"


def rewrite(source: Path, out: Path, *edits: Callable[[Any], object]) -> str:
    """Write the graph `source` as `out`, and return the name that it gives to the file of its weights.

    - The weights' file is called as the graph, with "_data" after it.
    - The optional input `logits_from` becomes the input `num_logits_to_keep`, an int64 scalar: so many of the last
      positions get logits; 0: all. Runtimes in JavaScript cannot set an optional input.
    - `edits` are called with the graph: `standard_embedding`, `unpacked_products`.

    Raises SaapError where `source` is not a graph that saap-edge wrote.
    """
    model = onnx.load(str(source), load_external_data=False)
    graph = model.graph
    if _FROM not in {value.name for value in graph.input}:
        raise SaapError(f"'{source}' is not a decoder that saap-edge wrote: export the model again")
    data = f"{out.name}_data"
    for tensor in graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = data
    _count_from_the_end(graph)
    for edit in edits:
        edit(graph)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(model.SerializeToString())
    return data


def _count_from_the_end(graph: Any) -> None:
    """The first position with logits is 0 - count, which a slice reads as counted from the end; of 0 it stays 0."""
    for values in (graph.input, graph.initializer):
        for value in [value for value in values if value.name == _FROM]:
            values.remove(value)
    graph.input.append(helper.make_tensor_value_info(KEEP, onnx.TensorProto.INT64, []))
    nodes = [
        helper.make_node("Neg", [KEEP], [f"{KEEP}.negative"], name=f"{KEEP}.negative"),
        helper.make_node("Reshape", [f"{KEEP}.negative", _constant(graph, f"{KEEP}.shape", [1])], [_FROM], name=_FROM),
    ]
    _replace(graph, [*nodes, *graph.node])


def standard_embedding(graph: Any) -> None:
    """Every GatherBlockQuantized as the operators that it stands for."""
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes += _gathered(graph, node) if node.op_type == "GatherBlockQuantized" else [node]
    _replace(graph, nodes)


def unpacked_products(graph: Any) -> None:
    """Every MatMulNBits as a product with float32 weights, computed from the same codes as the graph is loaded.

    onnxruntime-web's CPU has no kernel for the packed codes: it unpacks a whole matrix for every product, which takes
    longer than reading it in float32. All that a weight is computed from is constant, so that the runtime computes it
    once.
    """
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes += _product(graph, node) if node.op_type == _PACKED else [node]
    _replace(graph, nodes)


def unpacked_bytes(source: Path) -> int:
    """Bytes of the float32 weights that `unpacked_products` makes of a graph; 0 where nothing is packed."""
    nodes = onnx.load(str(source), load_external_data=False).graph.node
    return sum(4 * values["K"] * values["N"] for values in map(_attributes, nodes) if {"K", "N"} <= values.keys())


class _Nodes:
    """Nodes that are to take the place of one, with their constants."""

    def __init__(self, graph: Any, name: str) -> None:
        self.graph, self.name, self.made = graph, name, list[NodeProto]()

    def add(self, op: str, *inputs: str, output: str | None = None, **more: Any) -> str:
        """Append a node; returns the name of its output."""
        output = output or f"{self.name}.{len(self.made)}"
        self.made.append(helper.make_node(op, list(inputs), [output], name=output, **more))
        return output

    def constant(self, what: str, value: Any, dtype: Any = np.int64) -> str:
        """The name of a new constant."""
        return _constant(self.graph, f"{self.name}.{what}", value, dtype)

    def part(self, what: str, end: int) -> list[str]:
        """Constants of a slice of the first `end` columns."""
        return [self.constant(f"{what}.{place}", [at]) for place, at in (("from", 0), ("to", end), ("axis", 1))]

    def codes(self, packed: str, bits: int, shape: list[int], mark: str) -> str:
        """Codes as float32 in a shape; of 4 bits, two are in a byte, the first in its low half."""
        if bits == 4:
            low = self.add("BitwiseAnd", packed, self.constant(f"{mark}.low", 15, np.uint8))
            high = self.add("BitShift", packed, self.constant(f"{mark}.four", 4, np.uint8), direction="RIGHT")
            last = self.constant(f"{mark}.last", [-1])
            packed = self.add("Concat", *(self.add("Unsqueeze", half, last) for half in (low, high)), axis=-1)
        return self.add(
            "Cast", self.add("Reshape", packed, self.constant(f"{mark}.shape", shape)), to=onnx.TensorProto.FLOAT
        )


def _gathered(graph: Any, node: NodeProto) -> list[NodeProto]:
    """Codes and scales of the rows, and their product: (code - middle) * scale, a scale for each block of a row."""
    (codes, ids, scales), [result] = node.input, node.output
    values, new = _attributes(node), _Nodes(graph, f"{result}.standard")
    bits, block = values["bits"], values["block_size"]
    numbers = new.codes(new.add("Gather", codes, ids, axis=0), bits, [0, 0, -1], "codes")
    centred = new.add("Sub", numbers, new.constant("middle", 2 ** (bits - 1), np.float32))
    blocks = new.add("Reshape", centred, new.constant("blocks", [0, 0, -1, block]))
    factors = new.add("Unsqueeze", new.add("Gather", scales, ids, axis=0), new.constant("scale", [-1]))
    new.add("Reshape", new.add("Mul", blocks, factors), new.constant("whole", [0, 0, -1]), output=result)
    return new.made


def _product(graph: Any, node: NodeProto) -> list[NodeProto]:
    """The weight [out, in], of which the last block may be padded, and the product with it."""
    inputs, [result] = [*node.input, "", "", ""], node.output
    values, new = _attributes(node), _Nodes(graph, f"{result}.unpacked")
    bits, block, columns, rows = (values[name] for name in ("bits", "block_size", "K", "N"))
    count = -(-columns // block)
    numbers = new.codes(inputs[1], bits, [rows, count, block], "codes")
    if inputs[3]:
        zeros = new.codes(inputs[3], bits, [rows, -1], "zeros")
        there = new.add("Slice", zeros, *new.part("zeros", count))
        middle = new.add("Reshape", there, new.constant("zeros.blocks", [rows, count, 1]))
    else:
        middle = new.constant("middle", 2 ** (bits - 1), np.float32)
    factors = new.add("Reshape", inputs[2], new.constant("scales", [rows, count, 1]))
    weight = new.add("Mul", new.add("Sub", numbers, middle), factors)
    whole = new.add("Reshape", weight, new.constant("whole", [rows, count * block]))
    if count * block != columns:
        whole = new.add("Slice", whole, *new.part("columns", columns))
    bias = inputs[5]
    product = {"domain": "com.microsoft", "transB": 1}
    new.add("FusedMatMul", inputs[0], whole, output=None if bias else result, **product)
    if bias:
        new.add("Add", new.made[-1].output[0], bias, output=result)
    return new.made


def _attributes(node: NodeProto) -> dict[str, int]:
    return {entry.name: entry.i for entry in node.attribute}


def _constant(graph: Any, name: str, value: Any, dtype: Any = np.int64) -> str:
    graph.initializer.append(numpy_helper.from_array(np.array(value, dtype=dtype), name))
    return name


def _replace(graph: Any, nodes: list[NodeProto]) -> None:
    copies = []
    for node in nodes:
        copies.append(NodeProto())
        copies[-1].CopyFrom(node)
    del graph.node[:]
    graph.node.extend(copies)
