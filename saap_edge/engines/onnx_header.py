"""What an ONNX decoder reads per token, from its graph file alone, without the onnx package and without the weights.

Files with weights are not read, but must be as large as the graph says. onnx/onnx.proto numbers the graph's fields.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from saap_edge.engines.onnx_folder import head_size
from saap_edge.engines.protobuf import fields, inside, message, text, varints
from saap_edge.errors import SaapError

__all__ = ["Graph", "read_graph"]

LIMIT = 2**31  # bytes: protobuf's own
_SIZES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}  # TensorProto.DataType
_HALVES = {21: 2, 22: 2}  # uint4, int4: two a byte
_HALF = 10
_OURS, _PAGE = "saap-edge", 4096  # producer_name; bytes of a page, where large weights begin
_TOLD = {"saap_edge.quantisation", "saap_edge.context"}
_TYPED = (4, 5, 6, 7, 10, 11)  # TensorProto.float_data and the like
# These operators take rows of a table, or tables of angles. A token does not read such tables whole.
_TABLES = ("Gather", "GatherBlockQuantized", "RotaryEmbedding", "GroupQueryAttention")


@dataclass
class _Weight:
    place: object  # where its bytes lie: (file, offset), or an object. Two names for one place are one weight
    kind: int
    elements: int
    bytes: int


@dataclass
class _Node:
    op: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    integers: dict[str, int] = field(default_factory=dict)


@dataclass
class _Parsed:
    """The parts of a graph. `past` and `present`: bytes of a token in the cache, by layer and kind ("0.key"). `open`:
    those of `past` whose head width the graph leaves open, counted as 1."""

    weights: dict[str, _Weight] = field(default_factory=dict)
    nodes: list[_Node] = field(default_factory=list)
    past: dict[str, int] = field(default_factory=dict)
    present: dict[str, int] = field(default_factory=dict)
    state: dict[str, int] = field(default_factory=dict)
    open: set[str] = field(default_factory=set)
    files: dict[str, set[tuple[int, int]]] = field(default_factory=dict)  # of each, (begin, end) of what it holds
    told: dict[str, str] = field(default_factory=dict)
    vocab_size: int | None = None
    producer: str = ""
    opsets: int = 0


@dataclass(frozen=True)
class Graph:
    """What a decoder's graph tells.

    Attributes:
        bytes_per_token: weights that decoding one token reads, bytes.
        parameters: weights of matrices and vectors, each counted once.
        kv_bytes_per_token: bytes of a token in all inputs past_key_values.*.
        state_bytes: bytes of all inputs past.*, which do not grow with a text.
        quantisation: as saap-edge wrote it; else after the bits of the matrices, "fp32" for floats.
        layers: layers with a KV cache, or with a convolution or DeltaNet.
        context: tokens of the longest sequence; None: the graph does not state it.
        vocab_size: logits for a token; None: the graph does not state it.
    """

    bytes_per_token: int
    parameters: int
    kv_bytes_per_token: int
    quantisation: str
    layers: int
    context: int | None
    vocab_size: int | None
    state_bytes: int = 0


def read_graph(path: Path) -> Graph:
    """Read a graph file. Raises SaapError when it is missing, damaged or no decoder, or a file with weights is not
    whole."""
    try:
        if path.stat().st_size > LIMIT:
            raise SaapError(f"'{path}' is larger than an ONNX graph can be")
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise SaapError(f"cannot read '{path}': {error.strerror}") from None
    try:
        parsed = _parse(data)
        if parsed.open:
            width = head_size(path.parent)
            parsed.past |= {name: width * parsed.past[name] for name in parsed.open}
        graph = _count(parsed)
    except (IndexError, ValueError, KeyError, OverflowError, ZeroDivisionError):
        raise SaapError(f"'{path}' is not an ONNX graph, or is damaged") from None
    if not (graph.kv_bytes_per_token and graph.parameters and graph.bytes_per_token):
        raise SaapError(f"'{path}' is not a decoder: it takes no past_key_values or holds no weights")
    _check_files(path, parsed.files)
    if parsed.producer == _OURS:
        _check_no_holes(path, parsed.files)
    return graph


def _check_files(path: Path, files: dict[str, set[tuple[int, int]]]) -> None:
    for name, places in files.items():
        data, needed = path.parent / name, max(end for _, end in places)
        if any(begin < end for (_, end), (begin, _) in pairwise(sorted(places))):
            raise SaapError(f"'{path}' is damaged: two of its weights overlap in '{name}'")
        if name in ("", ".") or Path(name).is_absolute() or ".." in Path(name).parts:
            raise SaapError(f"'{path}' is damaged: its weights are in '{name}', outside its folder")
        if not data.is_file():
            raise SaapError(f"'{path}' has its weights in '{name}', which is missing: copy the whole folder")
        if data.stat().st_size < needed:
            raise SaapError(
                f"'{data}' is cut short: it has {data.stat().st_size} bytes, the graph lists {needed}: copy it again"
            )


def _check_no_holes(path: Path, files: dict[str, set[tuple[int, int]]]) -> None:
    """Raise SaapError where bytes in files of saap-edge belong to no weight: the graph was edited."""
    for name, places in files.items():
        size = (path.parent / name).stat().st_size
        for (_, end), (begin, _) in pairwise([(0, 0), *sorted(places), (size, size)]):
            if begin - end >= _PAGE:
                raise SaapError(f"'{path}' is damaged: none of its weights is at {end} to {begin} of '{name}'")


def _count(parsed: _Parsed) -> Graph:
    """Add up the parts of a graph. Raises ValueError where they contradict each other."""
    weights, nodes = parsed.weights, parsed.nodes
    held = [*parsed.past.items(), *parsed.state.items()]
    cut = parsed.producer == _OURS and not set(parsed.told) >= _TOLD  # saap-edge writes these at the end of the file
    if cut or not parsed.opsets or any(parsed.present.get(name, size) != size for name, size in held):
        raise ValueError
    widened = {
        node.outputs[0]: node.inputs[0]
        for node in nodes
        if node.op == "Cast" and node.inputs and weights.get(node.inputs[0], _Weight(0, 0, 0, 0)).kind == _HALF
    }
    read: dict[object, int] = {}
    readers: dict[object, str] = {}
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
                if readers.setdefault(weight.place, name) != name and parsed.producer == _OURS:
                    raise ValueError  # in graphs of saap-edge, only a table shares its bytes
                read[weight.place] = weight.bytes * (2 if name in widened else 1)  # halves are widened as they load
    quantisation = parsed.told.get("saap_edge.quantisation") or ("fp32" if bits is None else f"int{bits}")
    context = int(parsed.told["saap_edge.context"]) if "saap_edge.context" in parsed.told else None
    if context is not None and context < 1:
        raise ValueError
    layers = sum(name.endswith(".key") for name in parsed.past) + len({name.split(".")[0] for name in parsed.state})
    return Graph(
        sum(read.values()), sum(elements.values()), sum(parsed.past.values()), quantisation, layers, context,
        parsed.vocab_size, sum(parsed.state.values()),
    )  # fmt: skip


def _parameters(node: _Node, position: int, weight: _Weight) -> int:
    """Number of parameters in an input of a node. Codes count; scales, zero points and angles do not."""
    if node.op == "MatMulNBits" and position in (1, 2, 3):
        if position > 1:
            return 0
        columns, rows, block = (node.integers[name] for name in ("K", "N", "block_size"))
        if (
            min(columns, rows, block) < 1
            or 8 * weight.bytes != rows * -(-columns // block) * block * node.integers["bits"]
        ):
            raise ValueError
        return columns * rows
    if node.op == "GatherBlockQuantized":
        packed = 8 // node.integers.get("bits", 4) if weight.kind in (2, 3) else 1
        return weight.elements * packed if position == 0 else 0
    if node.op == "Gather":
        return weight.elements if position == 0 else 0
    return 0 if node.op in _TABLES else weight.elements


def _parse(data: memoryview) -> _Parsed:
    parsed = _Parsed()
    for number, value in fields(data):
        if number == 2:  # ModelProto.producer_name
            parsed.producer = text(value)
        elif number == 8:  # ModelProto.opset_import: behind the graph
            parsed.opsets += 1
        elif number == 14:  # ModelProto.metadata_props
            pair = {part: text(body) for part, body in fields(message(value))}
            parsed.told[pair[1]] = pair.get(2, "")
        elif number == 7:  # ModelProto.graph
            for part, body in fields(message(value)):
                _parse_part(parsed, part, body)
    return parsed


def _parse_part(parsed: _Parsed, part: int, body: int | memoryview) -> None:
    """Take one field of the graph into `parsed`."""
    if part == 1:
        parsed.nodes.append(_node(message(body)))
    elif part == 5:
        name, weight, outside = _initializer(message(body))
        if weight is not None:
            parsed.weights[name] = weight
        for file, begin, end in outside:
            parsed.files.setdefault(file, set()).add((begin, end))
    elif part in (11, 12):
        name, kind, sizes = _value(message(body))
        for prefix, found in (
            ("past_key_values.", parsed.past), ("past.", parsed.state), ("present.", parsed.present),
        ):  # fmt: skip
            if not name.startswith(prefix) or not sizes:
                continue
            if len(sizes) > 1:  # heads and their width
                found[name.removeprefix(prefix)] = math.prod(sizes) * _SIZES[kind]
            elif found is parsed.past:
                parsed.open.add(name.removeprefix(prefix))
                found[name.removeprefix(prefix)] = sizes[0] * _SIZES[kind]
        if name == "logits" and part == 12 and sizes:
            parsed.vocab_size = sizes[-1]


def _node(data: memoryview) -> _Node:
    node = _Node()
    for number, value in fields(data):
        if number in (1, 2):
            (node.inputs if number == 1 else node.outputs).append(text(value))
        elif number == 4:
            node.op = text(value)
        elif number == 5:
            name, integer = "", None
            for part, body in fields(message(value)):
                if part == 1:
                    name = text(body)
                elif part == 3 and isinstance(body, int):
                    integer = body
            if integer is not None:
                node.integers[name] = integer
    return node


def _initializer(data: memoryview) -> tuple[str, _Weight | None, list[tuple[str, int, int]]]:
    """Name, weight (None: an integer constant), and (file, begin, end) of its bytes that lie in another file. Raises
    ValueError where the bytes do not fit the shape."""
    name, kind, shape, outside, held = "", 0, [], {}, None
    for number, value in fields(data):
        if number == 1:
            shape += [value] if isinstance(value, int) else list(varints(value))
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8:
            name = text(value)
        elif number == 9:
            held = len(message(value))
        elif number == 13:
            pair = {part: text(body) for part, body in fields(message(value))}
            outside[pair[1]] = pair.get(2, "")
        elif number in _TYPED and held is None:
            held = -1  # numbers of a type, packed as it may be: not counted
    elements = math.prod(shape)
    size = -(-elements // _HALVES[kind]) if kind in _HALVES else elements * _SIZES[kind]
    place: object = object()
    where: list[tuple[str, int, int]] = []
    if outside:
        offset, length = int(outside.get("offset", 0)), int(outside.get("length", size))
        if offset < 0 or length != size:
            raise ValueError
        file = outside["location"]
        place, where = (file, offset), [(file, offset, offset + length), *_packed(file, outside)]
    elif size and held not in (size, -1):
        raise ValueError
    if kind in (6, 7, 9):  # int32, int64, bool
        return name, None, where
    return name, _Weight(place, kind, elements, size), where


def _packed(file: str, outside: dict[str, str]) -> Iterator[tuple[str, int, int]]:
    """(file, begin, end) of a weight's copies that ONNX Runtime packed (onnx_prepared.py). Their key, as "prepacked_0",
    has "KERNEL|offset;length;…" with as many places as the kernel has buffers."""
    for key, value in outside.items():
        if key.startswith("prepacked_"):
            for place in value.split("|")[1:]:
                offset, length = (int(number) for number in place.split(";")[:2])
                if min(offset, length) < 0:
                    raise ValueError
                yield file, offset, offset + length


def _value(data: memoryview) -> tuple[str, int, list[int]]:
    """Name, type and known sizes of an input or output."""
    name, kind, sizes = "", 0, []
    for number, value in fields(data):
        if number == 1:
            name = text(value)
        elif number == 2:
            for tensor in inside(value, 1):
                for part, body in fields(tensor):
                    if part == 1 and isinstance(body, int):
                        kind = body
                    elif part == 2:
                        for dimension in inside(body, 1):
                            sizes += [v for n, v in fields(dimension) if n == 1 and isinstance(v, int)]
    return name, kind, sizes
