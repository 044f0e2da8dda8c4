"""An open GGUF model: metadata by type, and rows of tensors, read on demand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from saap_edge.engines.gguf_header import Header, Tensor, read_header, read_strings
from saap_edge.errors import SaapError

__all__ = ["GgufModel", "ggml_type"]

_FLOATS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def ggml_type(tensor: Tensor) -> gguf.GGMLQuantizationType:
    """gguf-py's type of a tensor."""
    return gguf.GGMLQuantizationType[tensor.kind.upper()]


class GgufModel:
    """A GGUF file, or all files of a split model.

    Data is read, not mapped: a mapped file keeps in memory all that was read of it. Raises SaapError when a file is
    damaged or missing, or has a tensor of a type that gguf-py cannot dequantise. The methods that read metadata raise
    SaapError for a value of another type, and for a missing key without a default.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()  # parts of a split model are found by their names, so no link will do
        self.header: Header = read_header(self.path)
        self.tensors = {tensor.name: tensor for tensor in self.header.tensors}
        self.architecture = self.text("general.architecture")
        self._check_types()

    def _check_types(self) -> None:
        seen: set[str] = set()
        for tensor in self.header.tensors:
            if tensor.kind in seen:
                continue
            seen.add(tensor.kind)
            kind = ggml_type(tensor)
            try:
                gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
            except NotImplementedError:
                raise SaapError(
                    f"'{self.path}': tensor '{tensor.name}' has type {kind.name}, which gguf-py cannot dequantise: "
                    "give the model in another type"
                ) from None

    def key(self, name: str) -> str:
        """The full metadata key of `name` in this architecture."""
        return f"{self.architecture}.{name}"

    def __contains__(self, key: str) -> bool:
        return key in self.header.metadata

    def _value(self, key: str, kinds: tuple[type, ...], what: str, default: Any) -> Any:
        if key not in self.header.metadata:
            if default is ...:
                raise SaapError(f"'{self.path}' lacks {key}: it is no whole model")
            return default
        value = self.header.metadata[key]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise SaapError(f"'{self.path}': {key} is {_shown(value)}, not {what}")
        return value

    def count(self, key: str, default: Any = ...) -> Any:
        """A whole number from 0 to 2^31 - 1; `default` where it is missing."""
        value = self._value(key, (int,), "a count", default)
        if value is not default and not 0 <= value < 1 << 31:
            raise SaapError(f"'{self.path}': {key} is {value}, not a count")
        return value

    def number(self, key: str, default: Any = ...) -> Any:
        """A finite number."""
        value = self._value(key, (int, float), "a number", default)
        if isinstance(value, float) and not math.isfinite(value):
            raise SaapError(f"'{self.path}': {key} is {value}, not a finite number")
        return value if value is default else _shortest(value)

    def flag(self, key: str, default: Any = ...) -> Any:
        """True or false."""
        return self._value(key, (bool,), "true or false", default)

    def text(self, key: str, default: Any = ...) -> Any:
        """A text."""
        return self._value(key, (str,), "a text", default)

    def array(self, key: str, default: Any = ...) -> Any:
        """An array of numbers."""
        return self._value(key, (list,), "an array of numbers", default)

    def counts(self, key: str, layers: int, default: Any = ...) -> list[int]:
        """A count for each layer, from an array or a single count. Raises SaapError for an array of another length."""
        value = self.header.metadata.get(key)
        if not isinstance(value, list):
            return [self.count(key, default)] * layers
        if len(value) != layers or any(not isinstance(one, int) or not 0 <= one < 1 << 31 for one in value):
            raise SaapError(f"'{self.path}': {key} is {_shown(value)}, not a count for each of {layers} layers")
        return value

    def strings(self, key: str, default: Any = ...) -> Any:
        """An array of texts."""
        found = read_strings(self.header.files[0], key) if key in self.header.lengths else None
        if found is None and default is ...:
            raise SaapError(f"'{self.path}' lacks {key}: it is no whole model")
        return default if found is None else found

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of a tensor in torch's order ([out, in]), None where it is missing."""
        return tuple(reversed(self.tensors[name].shape)) if name in self.tensors else None

    def dtype(self, name: str) -> torch.dtype:
        """The type of the tensor that `rows` returns; float32 for blocks."""
        return _FLOATS.get(self.tensors[name].kind, torch.float32)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of a matrix, or numbers [start, stop) of a vector, dequantised; a new tensor."""
        tensor = self.tensors[name]
        if len(tensor.shape) == 1:
            return self._read(tensor, 0, 1)[0, start:stop]
        return self._read(tensor, start, stop)

    def packed(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) of a matrix as they are in the file, uint8 [rows, bytes]."""
        return _packed(self.tensors[name], start, stop)

    def _read(self, tensor: Tensor, start: int, stop: int) -> torch.Tensor:
        data, kind = _packed(tensor, start, stop), tensor.kind
        if kind in _FLOATS:
            return torch.from_numpy(data).view(_FLOATS[kind])
        return torch.from_numpy(np.ascontiguousarray(gguf.quants.dequantize(data, ggml_type(tensor)), np.float32))


def _packed(tensor: Tensor, start: int, stop: int) -> np.ndarray:
    rows = math.prod(tensor.shape[1:])
    size = tensor.bytes // rows
    try:
        data = np.fromfile(tensor.file, np.uint8, (stop - start) * size, offset=tensor.offset + start * size)
    except OSError as error:
        raise SaapError(f"cannot read '{tensor.file}': {error.strerror}") from None
    if len(data) < (stop - start) * size:
        raise SaapError(f"'{tensor.file}' became shorter while it was read")
    return data.reshape(stop - start, size)


def _shortest(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05 instead of 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) and np.float32(value) == value else value


def _shown(value: Any) -> str:
    text = repr(value if not isinstance(value, Sequence) or isinstance(value, str) else list(value[:4]))
    return text if len(text) < 60 else f"{text[:60]}..."
