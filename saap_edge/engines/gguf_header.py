"""Metadata and tensors of a GGUF file, read without the gguf package: a board has only the runtime.

llama.cpp itself shows scalars only, and per-layer widths are arrays. Format: ggml/docs/gguf.md, version 3.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from saap_edge.errors import SaapError

__all__ = ["Tensor", "read_metadata", "read_tensors"]

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


# ggml's types: name, weights in a block, bytes of a block.
_TYPES = {
    0: ("f32", 1, 4), 1: ("f16", 1, 2), 2: ("q4_0", 32, 18), 3: ("q4_1", 32, 20), 6: ("q5_0", 32, 22),
    7: ("q5_1", 32, 24), 8: ("q8_0", 32, 34), 10: ("q2_k", 256, 84), 11: ("q3_k", 256, 110), 12: ("q4_k", 256, 144),
    13: ("q5_k", 256, 176), 14: ("q6_k", 256, 210), 16: ("iq2_xxs", 256, 66), 17: ("iq2_xs", 256, 74),
    18: ("iq3_xxs", 256, 98), 19: ("iq1_s", 256, 50), 20: ("iq4_nl", 32, 18), 21: ("iq3_s", 256, 110),
    22: ("iq2_s", 256, 82), 23: ("iq4_xs", 256, 136), 29: ("iq1_m", 256, 56), 30: ("bf16", 1, 2),
    34: ("tq1_0", 256, 54), 35: ("tq2_0", 256, 66), 39: ("mxfp4", 32, 17),
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """A tensor as the header lists it; `kind` is ggml's type in small letters, `bytes` what its blocks take."""

    name: str
    kind: str
    elements: int
    bytes: int


def read_metadata(path: Path) -> dict[str, Any]:
    """All key-value pairs of a GGUF file; arrays of strings (the vocabulary) are skipped and left out.

    Raises SaapError when the file is missing, cut short or not GGUF.
    """
    with _opened(path) as file:
        return _metadata(file, path)[0]


def read_tensors(path: Path) -> list[Tensor]:
    """Every tensor of a GGUF file. Raises SaapError as `read_metadata`, and on a type of unknown size."""
    with _opened(path) as file:
        count = _metadata(file, path)[1]
        return [_tensor(file, path) for _ in range(count)]


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise SaapError(f"cannot read '{path}': {error.strerror}") from None
    except (struct.error, EOFError, ValueError, KeyError, OverflowError, MemoryError):
        raise SaapError(f"'{path}' is damaged: its GGUF header cannot be read") from None


def _metadata(file: BinaryIO, path: Path) -> tuple[dict[str, Any], int]:
    """The pairs, and how many tensors are listed after them."""
    if file.read(4) != b"GGUF":
        raise SaapError(f"'{path}' is not a GGUF file")
    version, tensors, pairs = struct.unpack("<IQQ", _take(file, 20))
    if version not in (2, 3):
        raise SaapError(f"'{path}' is GGUF version {version}, versions 2 and 3 are read")
    found = {}
    for _ in range(pairs):
        key = _string(file)
        value = _value(file, struct.unpack("<I", _take(file, 4))[0])
        if value is not None:
            found[key] = value
    return found, tensors


def _tensor(file: BinaryIO, path: Path) -> Tensor:
    name = _string(file)
    rank = struct.unpack("<I", _take(file, 4))[0]
    shape = struct.unpack(f"<{rank}Q", _take(file, 8 * rank))
    code = struct.unpack("<IQ", _take(file, 12))[0]
    if code not in _TYPES:
        raise SaapError(f"'{path}': tensor '{name}' has type {code}, whose size is not known here")
    kind, block, size = _TYPES[code]
    elements = math.prod(shape)
    return Tensor(name, kind, elements, elements // block * size)


def _take(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise EOFError
    return data


def _string(file: BinaryIO) -> str:
    length = struct.unpack("<Q", _take(file, 8))[0]
    return _take(file, length).decode("utf-8")


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        inner, count = struct.unpack("<IQ", _take(file, 12))
        if inner == _STRING:
            for _ in range(count):
                file.seek(struct.unpack("<Q", _take(file, 8))[0], 1)
            return None
        code = f"<{count}{_SCALARS[inner]}"
        return list(struct.unpack(code, _take(file, struct.calcsize(code))))
    code = f"<{_SCALARS[kind]}"
    return struct.unpack(code, _take(file, struct.calcsize(code)))[0]
