"""An ONNX graph under construction. Its weights go to `model.onnx.data` one at a time; memory holds only one."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir

__all__ = ["DATA_FILE", "GraphWriter"]

DATA_FILE = "model.onnx.data"
OPSETS = {"": 21, "com.microsoft": 1}
PAGE, LARGE = 4096, 1 << 20  # large tensors start on a page, so that a runtime can map them instead of copying


class GraphWriter:
    """An ONNX graph under construction. Its weights are written to an external data file at once.

    Attributes:
        bytes_by_type: bytes of weights, by their type.
        bytes_per_token: bytes of weights that decoding one token reads.
    """

    def __init__(self, data: BinaryIO) -> None:
        self.inputs: list[ir.Value] = []
        self.outputs: list[ir.Value] = []
        self.bytes_by_type: dict[str, int] = defaultdict(int)
        self.bytes_per_token = 0
        self._data = data
        self._nodes: list[ir.Node] = []
        self._initializers: dict[str, ir.Value] = {}

    def input(self, name: str, dtype: ir.DataType, shape: list[int | str]) -> ir.Value:
        """Add an input; a text in `shape` names a free dimension."""
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self.inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, dtype: ir.DataType, shape: list[int | str]) -> None:
        """Make a value an output of the graph, under this name."""
        value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
        self.outputs.append(value)

    def nodes(
        self, count: int, op: str, inputs: list[ir.Value | None], domain: str = "", **attributes: Any
    ) -> list[ir.Value]:
        """Append a node with `count` outputs; return these."""
        node = ir.node(op, inputs, attributes, domain=domain, num_outputs=count, name=f"{op}_{len(self._nodes)}")
        for index, value in enumerate(node.outputs):
            value.name = f"{node.name}.{index}"
        self._nodes.append(node)
        return list(node.outputs)

    def node(self, op: str, inputs: list[ir.Value | None], domain: str = "", **attributes: Any) -> ir.Value:
        """Append a node with one output; return it."""
        return self.nodes(1, op, inputs, domain, **attributes)[0]

    def constant(self, name: str, values: int | list[int]) -> ir.Value:
        """A small int64 constant inside the graph file, where shape inference can read it."""
        return self._register(name, ir.tensor(np.array(values, dtype=np.int64), name=name))

    def default(self, value: ir.Value, array: np.ndarray) -> None:
        """Make the graph input `value` optional, with `array` as its default."""
        assert value.name
        value.const_value = ir.tensor(array, name=value.name)
        self._initializers[value.name] = value

    def weight(self, name: str, array: np.ndarray, per_token: bool = True) -> ir.Value:
        """Write a weight to the data file. `per_token`: all of it is read for every decoded token."""
        size, kind = array.nbytes, ir.DataType.from_numpy(array.dtype)
        start = self._align(size)
        self._data.write(np.ascontiguousarray(array).data)
        self.bytes_by_type[kind.name.lower()] += size
        self.bytes_per_token += size if per_token else 0
        return self._external(name, start, size, kind, array.shape)

    def alias(self, name: str, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        """The same bytes of the data file under another shape; takes no space on disk or in mapped memory."""
        tensor = value.const_value
        assert isinstance(tensor, ir.ExternalTensor)
        assert tensor.offset is not None and tensor.length is not None
        return self._external(name, tensor.offset, tensor.length, tensor.dtype, shape)

    def finish(self) -> ir.Graph:
        """The finished graph. The caller must then close or flush the data file."""
        return ir.Graph(
            self.inputs, self.outputs, nodes=self._nodes, initializers=list(self._initializers.values()),
            opset_imports=OPSETS, name="decoder",
        )  # fmt: skip

    def _align(self, size: int) -> int:
        step = PAGE if size >= LARGE else 64
        self._data.write(b"\0" * (-self._data.tell() % step))
        return self._data.tell()

    def _external(self, name: str, start: int, size: int, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
        tensor = ir.ExternalTensor(DATA_FILE, start, size, dtype, shape=ir.Shape(shape), name=name)
        return self._register(name, tensor)

    def _register(self, name: str, tensor: Any) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        self._initializers[name] = value
        return value
