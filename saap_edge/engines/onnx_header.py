"""What an ONNX decoder reads per token, from its graph file alone: without the onnx package, and without its weights.

A graph file is a protobuf message; the few fields needed are read here. Numbers of fields: onnx/onnx.proto.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from saap_edge.errors import SaapError

__all__ = ["Graph", "read_graph"]

LIMIT = 2**31  # bytes: protobuf's own
_SIZES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}  # TensorProto.DataType
_HALVES = {21: 2, 22: 2}  # uint4, int4: two a byte
_HALF = 10
# These take rows of a table, or tables of angles: a token does not read them whole.
_TABLES = ("Gather", "GatherBlockQuantized", "RotaryEmbedding", "GroupQueryAttention")


@dataclass
class _Weight:
    place: object  # where its bytes lie: two names for the same bytes are one weight
    kind: int
    elements: int
    bytes: int


@dataclass
class _Node:
    op: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    integers: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """`bytes_per_token`: of weights that decoding one token reads. `parameters`: weights of the matrices and vectors,
    each once. `kv_bytes_per_token`: of all inputs past_key_values.*. `quantisation`: what saap-edge wrote, else by
    the matrices' bits, "fp32" where these are floats."""

    bytes_per_token: int
    parameters: int
    kv_bytes_per_token: int
    quantisation: str


def read_graph(path: Path) -> Graph:
    """Raises SaapError when `path` is missing, no ONNX graph, or takes no keys and values of the past."""
    try:
        if path.stat().st_size > LIMIT:
            raise SaapError(f"'{path}' is larger than an ONNX graph can be")
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise SaapError(f"cannot read '{path}': {error.strerror}") from None
    try:
        weights, nodes, kv_bytes, told = _parse(data)
        graph = _count(weights, nodes, kv_bytes, told)
    except (IndexError, ValueError, KeyError, OverflowError, ZeroDivisionError):
        raise SaapError(f"'{path}' is not an ONNX graph, or is damaged") from None
    if not (graph.kv_bytes_per_token and graph.parameters and graph.bytes_per_token):
        raise SaapError(f"'{path}' is not a decoder: it takes no past_key_values or holds no weights")
    return graph


def _count(weights: dict[str, _Weight], nodes: list[_Node], kv_bytes: int, told: str | None) -> Graph:
    widened = {
        node.outputs[0]: node.inputs[0]
        for node in nodes
        if node.op == "Cast" and node.inputs and weights.get(node.inputs[0], _Weight(0, 0, 0, 0)).kind == _HALF
    }
    read: dict[object, int] = {}
    elements: dict[object, int] = {}
    bits = None
    for node in nodes:
        if node.op == "MatMulNBits":
            bits = node.integers["bits"] if bits is None else min(bits, node.integers["bits"])
        for position, name in enumerate(node.inputs):
            weight = weights.get(widened.get(name, name))
            if weight is None or (node.op == "Cast" and node.outputs[0] in widened):
                continue
            elements[weight.place] = max(elements.get(weight.place, 0), _parameters(node, position, weight))
            if node.op not in _TABLES:
                read[weight.place] = weight.bytes * (2 if name in widened else 1)  # halves are widened as they load
    quantisation = told or ("fp32" if bits is None else f"int{bits}")
    return Graph(sum(read.values()), sum(elements.values()), kv_bytes, quantisation)


def _parameters(node: _Node, position: int, weight: _Weight) -> int:
    """How many an input of a node holds: codes are, scales, zero points and angles are not."""
    if node.op == "MatMulNBits" and position in (1, 2, 3):
        return node.integers["K"] * node.integers["N"] if position == 1 else 0
    if node.op == "GatherBlockQuantized":
        packed = 8 // node.integers.get("bits", 4) if weight.kind in (2, 3) else 1
        return weight.elements * packed if position == 0 else 0
    if node.op == "Gather":
        return weight.elements if position == 0 else 0
    return 0 if node.op in _TABLES else weight.elements


def _parse(data: memoryview) -> tuple[dict[str, _Weight], list[_Node], int, str | None]:
    weights: dict[str, _Weight] = {}
    nodes: list[_Node] = []
    kv_bytes, told = 0, None
    for number, value in _fields(data):
        if number == 14:  # ModelProto.metadata_props
            pair = {part: _text(body) for part, body in _fields(_message(value))}
            told = pair.get(2) if pair.get(1) == "saap_edge.quantisation" else told
        if number != 7:  # ModelProto.graph
            continue
        for part, body in _fields(_message(value)):
            if part == 1:
                nodes.append(_node(_message(body)))
            elif part == 5:
                name, weight = _initializer(_message(body))
                if weight is not None:
                    weights[name] = weight
            elif part == 11:
                kv_bytes += _past(_message(body))
    return weights, nodes, kv_bytes, told


def _node(data: memoryview) -> _Node:
    node = _Node()
    for number, value in _fields(data):
        if number in (1, 2):
            (node.inputs if number == 1 else node.outputs).append(_text(value))
        elif number == 4:
            node.op = _text(value)
        elif number == 5:
            name, integer = "", None
            for part, body in _fields(_message(value)):
                if part == 1:
                    name = _text(body)
                elif part == 3 and isinstance(body, int):
                    integer = body
            if integer is not None:
                node.integers[name] = integer
    return node


def _initializer(data: memoryview) -> tuple[str, _Weight | None]:
    """Weights are floats or codes; an integer constant of the graph is None."""
    name, kind, shape, outside, place = "", 0, [], {}, object()
    for number, value in _fields(data):
        if number == 1:
            shape += [value] if isinstance(value, int) else list(_varints(value))
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8:
            name = _text(value)
        elif number == 13:
            pair = {part: _text(body) for part, body in _fields(_message(value))}
            outside[pair[1]] = pair.get(2, "")
    elements = math.prod(shape)
    if outside:
        place = (outside["location"], outside.get("offset", "0"))
    if kind in (6, 7, 9):  # int32, int64, bool
        return name, None
    size = elements // _HALVES[kind] if kind in _HALVES else elements * _SIZES[kind]
    return name, _Weight(place, kind, elements, int(outside.get("length", size)))


def _past(data: memoryview) -> int:
    """Bytes a token takes in an input past_key_values.*: [batch, heads, past, width]; else 0."""
    name, kind, sizes = "", 0, []
    for number, value in _fields(data):
        if number == 1:
            name = _text(value)
        elif number == 2:
            for tensor in _inside(value, 1):
                for part, body in _fields(tensor):
                    if part == 1 and isinstance(body, int):
                        kind = body
                    elif part == 2:
                        for dimension in _inside(body, 1):
                            sizes += [v for n, v in _fields(dimension) if n == 1 and isinstance(v, int)]
    return math.prod(sizes) * _SIZES[kind] if name.startswith("past_key_values.") and sizes else 0


def _inside(value: int | memoryview, wanted: int) -> Iterator[memoryview]:
    yield from (_message(body) for number, body in _fields(_message(value)) if number == wanted)


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of a message's fields: an integer, or the bytes of a text, a message or packed numbers."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if key & 7 == 2:
            length, at = _varint(data, at)
        else:
            length = {1: 8, 5: 4}[key & 7]
        if at + length > len(data):
            raise IndexError
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError


def _varints(value: memoryview) -> Iterator[int]:
    at = 0
    while at < len(value):
        number, at = _varint(value, at)
        yield number


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_message(value)).decode("utf-8")
