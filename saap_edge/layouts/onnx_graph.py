"""Our ONNX graph as runtimes in JavaScript want it: other names, and no operator that a browser lacks.

The graph is edited in place of being exported again: its weights are not read, and their file is only given another
name. What an exported folder holds for other runtimes stays as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from saap_edge.errors import SaapError

__all__ = ["KEEP", "rewrite", "standard_embedding"]

KEEP = "num_logits_to_keep"  # transformers.js gives it where a graph has it: 1 while it writes, 0 for all logits
_FROM = "logits_from"
_QUANTISED = "GatherBlockQuantized"


def rewrite(source: Path, out: Path, standard: bool) -> str:
    """Write the graph `source` as `out`, and return the name that it gives to the file of its weights.

    - The weights' file is called as the graph, with "_data" after it.
    - The optional input `logits_from` becomes the input `num_logits_to_keep`, an int64 scalar: so many of the last
      positions get logits; 0: all. Runtimes in JavaScript cannot set an optional input.
    - With `standard`, the embedding of quantised weights is standard operators.

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
    if standard:
        standard_embedding(graph)
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
    _replace(graph, list(graph.node), [*nodes, *graph.node])


def standard_embedding(graph: Any) -> None:
    """Every GatherBlockQuantized as the operators that it stands for."""
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes += _gathered(graph, node) if node.op_type == _QUANTISED else [node]
    _replace(graph, list(graph.node), nodes)


def _gathered(graph: Any, node: NodeProto) -> list[NodeProto]:
    """Codes and scales of the rows, and their product: (code - middle) * scale, a scale for each block of a row."""
    (codes, ids, scales), [result] = node.input, node.output
    attributes = {entry.name: entry.i for entry in node.attribute}
    bits, block, name = attributes["bits"], attributes["block_size"], f"{result}.standard"
    made: list[NodeProto] = []

    def add(op: str, *inputs: str, output: str | None = None, **more: Any) -> str:
        output = output or f"{name}.{len(made)}"
        made.append(helper.make_node(op, list(inputs), [output], name=output, **more))
        return output

    def constant(what: str, value: Any, dtype: Any = np.int64) -> str:
        return _constant(graph, f"{name}.{what}", value, dtype)

    rows = add("Gather", codes, ids, axis=0)
    if bits == 4:  # two codes a byte, the first in the low half
        low = add("BitwiseAnd", rows, constant("low", 15, np.uint8))
        high = add("BitShift", rows, constant("four", 4, np.uint8), direction="RIGHT")
        last = constant("last", [-1])
        both = add("Concat", add("Unsqueeze", low, last), add("Unsqueeze", high, last), axis=-1)
        rows = add("Reshape", both, constant("pairs", [0, 0, -1]))
    numbers = add("Sub", add("Cast", rows, to=onnx.TensorProto.FLOAT), constant("middle", 2 ** (bits - 1), np.float32))
    blocks = add("Reshape", numbers, constant("blocks", [0, 0, -1, block]))
    factors = add("Unsqueeze", add("Gather", scales, ids, axis=0), constant("scale", [-1]))
    add("Reshape", add("Mul", blocks, factors), constant("whole", [0, 0, -1]), output=result)
    return made


def _constant(graph: Any, name: str, value: Any, dtype: Any = np.int64) -> str:
    graph.initializer.append(numpy_helper.from_array(np.array(value, dtype=dtype), name))
    return name


def _replace(graph: Any, old: list[NodeProto], new: list[NodeProto]) -> None:
    copies = []
    for node in new:
        copies.append(NodeProto())
        copies[-1].CopyFrom(node)
    del graph.node[: len(old)]
    graph.node.extend(copies)
