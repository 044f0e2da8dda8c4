"""Metadata of a GGUF file, read without the gguf package: a board has only the runtime.

llama.cpp itself shows scalars only, and per-layer widths are arrays. Format: ggml/docs/gguf.md, version 3.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

from saap_edge.errors import SaapError

__all__ = ["read_metadata"]

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def read_metadata(path: Path) -> dict[str, Any]:
    """All key-value pairs of a GGUF file; arrays of strings (the vocabulary) are skipped and left out.

    Raises SaapError when the file is missing, cut short or not GGUF.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise SaapError(f"'{path}' is not a GGUF file")
            version, _tensors, pairs = struct.unpack("<IQQ", _take(file, 20))
            if version not in (2, 3):
                raise SaapError(f"'{path}' is GGUF version {version}, versions 2 and 3 are read")
            found = {}
            for _ in range(pairs):
                key = _string(file)
                value = _value(file, struct.unpack("<I", _take(file, 4))[0])
                if value is not None:
                    found[key] = value
            return found
    except OSError as error:
        raise SaapError(f"cannot read '{path}': {error.strerror}") from None
    except (struct.error, EOFError, UnicodeDecodeError, KeyError):
        raise SaapError(f"'{path}' is damaged: its GGUF header cannot be read") from None


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
