"""An OpenVINO model under construction: weights that memory holds one at a time, and the shapes of nodes that the CPU
plugin fuses.

OpenVINO serialises a whole model at once, so that all constants must exist when it is written. Here they lie in a
scratch file that is mapped, and the system may drop their pages.
"""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from saap_edge.engines.lazy import lazy_import
from saap_edge.exporting.packing import nibbles
from saap_edge.model.blocks import Blocks

__all__ = ["OpenvinoGraph"]

ov, ops = lazy_import("openvino"), lazy_import("openvino.opset13")


class OpenvinoGraph:
    """Nodes and weights of an OpenVINO model.

    Attributes:
        bytes_by_type: bytes of weights, by their type.
        bytes_per_token: bytes of weights that decoding one token reads.
        sinks: the nodes that write the KV cache.
    """

    def __init__(self, scratch: Path) -> None:
        """`scratch`: a file for the weights, for as long as the graph is open in a `with`."""
        self.bytes_by_type: dict[str, int] = defaultdict(int)
        self.bytes_per_token = 0
        self.sinks: list[Any] = []
        self._tensors: list[Any] = []  # a constant does not hold its memory
        self._path = scratch
        self._data: BinaryIO = open(scratch, "wb")  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> OpenvinoGraph:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the scratch file: no model that has its weights may be used any more."""
        self._data.close()
        self._path.unlink(missing_ok=True)

    def integers(self, *values: int) -> Any:
        """A constant int64 vector."""
        return ops.constant(np.array(values, dtype=np.int64))

    def integer(self, value: int) -> Any:
        """A constant int64 scalar."""
        return ops.constant(np.array(value, dtype=np.int64))

    def number(self, value: float) -> Any:
        """A constant float32 scalar."""
        return ops.constant(np.array(value, dtype=np.float32))

    def weight(
        self, name: str, array: np.ndarray, per_token: bool = True, type: str | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> Any:  # fmt: skip
        """A weight as a constant. `type` and `shape`: of values that are packed in bytes. `per_token`: all of it is
        read for every decoded token."""
        kept = self._kept(array)
        kind = getattr(ov.Type, type) if type else ov.Type(kept.dtype)
        tensor = ov.Tensor(kept, ov.Shape(shape or array.shape), kind)
        self._tensors.append(tensor)
        constant = ov.op.Constant(tensor, shared_memory=True)
        constant.set_friendly_name(name)
        self.bytes_by_type[kind.get_type_name()] += array.nbytes
        self.bytes_per_token += array.nbytes if per_token else 0
        return constant

    def _kept(self, array: np.ndarray) -> np.ndarray:
        """The array in the scratch file, mapped."""
        self._data.write(b"\0" * (-self._data.tell() % 64))
        start = self._data.tell()
        self._data.write(np.ascontiguousarray(array).data)
        self._data.flush()
        return np.memmap(self._path, dtype=array.dtype, mode="c", offset=start, shape=array.shape)

    def decompressed(self, name: str, blocks: Blocks, per_token: bool = True) -> Any:
        """The values [out, in] of a weight in blocks: codes, zero points and scales, as the CPU plugin fuses them into
        products. Without zero points, codes are signed. A group that does not divide the row is split, and its scale
        repeated."""
        rows, columns = blocks.codes.shape
        group, bits = math.gcd(blocks.group, columns), blocks.format.bits
        count = columns // group

        def of_groups(figures: torch.Tensor) -> np.ndarray:
            whole = figures.repeat_interleave(blocks.group // group, dim=1)[:, :count]
            return np.ascontiguousarray(whole.numpy())

        codes, sign = blocks.codes.numpy(), "u"
        if blocks.offsets is None:
            sign, codes = "i", codes ^ blocks.format.middle  # two's complement
        values = self._converted(name, codes, f"{sign}{bits}", (rows, count, group), per_token)
        if blocks.offsets is not None:
            zeros = of_groups(blocks.offsets).reshape(1, -1)
            zeros = np.pad(zeros, ((0, 0), (0, zeros.size % 2)))
            zero = self._converted(f"{name}/zero_point", zeros, f"u{bits}", (rows, count, 1), per_token)
            values = ops.subtract(values, zero)
        scales = self.weight(f"{name}/scale", of_groups(blocks.scales)[..., None], per_token)
        whole = ops.reshape(ops.multiply(values, scales), self.integers(rows, columns), False)
        return ops.convert(whole, ov.Type.f32)

    def _converted(self, name: str, codes: np.ndarray, type: str, shape: tuple[int, ...], per_token: bool) -> Any:
        packed = nibbles(codes) if type.endswith("4") else codes
        return ops.convert(self.weight(name, packed, per_token, type, shape), ov.Type.f16)
