"""Metadata and tensors of a GGUF model, read without the gguf package, because a board has only the runtime.

llama.cpp itself shows scalars only, and widths per layer are arrays. Format: ggml/docs/gguf.md, version 3. What a
header lists is checked against the size of the file, as in llama.cpp. A model may be split over several files,
`NAME-00001-of-00003.gguf` and so on; any of them stands for the whole set.
"""

from __future__ import annotations

import math
import re
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from saap_edge.errors import SaapError

__all__ = ["Header", "Tensor", "read_header", "read_strings"]

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DIMENSIONS, _ALIGNMENT = 4, 32  # of a tensor at most; bytes, where the file states no alignment
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


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
    """A tensor as the header lists it.

    Attributes:
        name: its name.
        kind: ggml's type in small letters, as "q4_0".
        shape: its dimensions; the first is the length of a row.
        elements: number of weights.
        bytes: bytes of its blocks.
        file, offset: where its blocks begin.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    elements: int
    bytes: int
    file: Path
    offset: int


@dataclass(frozen=True)
class Header:
    """A model in one GGUF file, or split over several.

    Attributes:
        files: its files, in order.
        metadata: all key-value pairs but arrays of strings.
        lengths: lengths of the arrays of strings, by key.
        tensors: all tensors.
        bytes: size of all files.
    """

    files: tuple[Path, ...]
    metadata: dict[str, Any]
    lengths: dict[str, int]
    tensors: tuple[Tensor, ...]
    bytes: int


def read_header(path: Path) -> Header:
    """Read the header of a model; `path` is its file, or any one of its files.

    Raises SaapError when a file is missing, is not GGUF, is cut short, or holds more or less than its header lists, and
    when a file of the set is missing.
    """
    given = _read_file(path)
    files = _files_of(path, given.metadata)
    parts = [given if file == path else _read_file(file) for file in files]
    if len(parts) > 1:
        _check_set(files, parts)
    tensors = [tensor for part in parts for tensor in part.tensors]
    _check_once(path, "tensor", [tensor.name for tensor in tensors])
    first = parts[0]
    return Header(files, first.metadata, first.lengths, tuple(tensors), sum(part.bytes for part in parts))


def read_strings(path: Path, key: str) -> list[str] | None:
    """An array of strings, such as the vocabulary, by its key; None where there is none. Raises as `read_header`."""
    with _opened(path) as source:
        strings = _read_pairs(source, wanted=key)[2]
    return strings


def _files_of(path: Path, metadata: dict[str, Any]) -> tuple[Path, ...]:
    """All files of the set, found by the name of one, as llama.cpp does."""
    count, number = metadata.get("split.count", 0), metadata.get("split.no", 0)
    if count in (0, 1):
        return (path,)
    if not (_is_count(count) and _is_count(number) and number < count):
        raise SaapError(f"'{path}' is damaged: it says it is part {number} of {count} files")
    name = _PART.fullmatch(path.name)
    if not name or (int(name[2]), int(name[3])) != (number + 1, count):
        raise SaapError(
            f"'{path}' is part {number + 1} of a model in {count} files and has another name than "
            f"NAME-{number + 1:05}-of-{count:05}.gguf, by which the others are found: rename it"
        )
    return tuple(path.with_name(f"{name[1]}-{part:05}-of-{count:05}.gguf") for part in range(1, count + 1))


def _check_set(files: tuple[Path, ...], parts: list[Header]) -> None:
    for index, (file, part) in enumerate(zip(files, parts, strict=True)):
        told = (part.metadata.get("split.no"), part.metadata.get("split.count"))
        if told != (index, len(parts)):
            raise SaapError(f"'{file}' is not part {index + 1} of {len(parts)}: its header says otherwise")
    listed, found = parts[0].metadata.get("split.tensors.count"), sum(len(part.tensors) for part in parts)
    if listed is not None and listed != found:
        raise SaapError(f"'{files[0]}': the set should hold {listed} tensors, its files list {found}")


class _Source:
    """A file whose size is known: a false length in it raises EOFError, instead of asking for that much memory."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self.path, self.size = file, path, path.stat().st_size

    def take(self, count: int) -> bytes:
        if count > self.size - self._file.tell():
            raise EOFError
        return self._file.read(count)

    def skip(self, count: int) -> None:
        if count > self.size - self._file.tell():
            raise EOFError
        self._file.seek(count, 1)

    def numbers(self, code: str) -> tuple[Any, ...]:
        code = f"<{code}"
        return struct.unpack(code, self.take(struct.calcsize(code)))

    def string(self) -> str:
        return self.take(self.numbers("Q")[0]).decode("utf-8")

    @property
    def at(self) -> int:
        return self._file.tell()


@contextmanager
def _opened(path: Path) -> Iterator[_Source]:
    try:
        with path.open("rb") as file:
            yield _Source(file, path)
    except OSError as error:
        raise SaapError(f"cannot read '{path}': {error.strerror}") from None
    except (struct.error, EOFError, ValueError, KeyError, OverflowError, MemoryError):
        raise SaapError(f"'{path}' is damaged: its GGUF header cannot be read") from None


def _read_file(path: Path) -> Header:
    """Read the header of one file; offsets of tensors are counted from the beginning of the file."""
    with _opened(path) as source:
        tensors_listed, metadata, _, lengths = _read_pairs(source)
        listed = [_tensor(source) for _ in range(tensors_listed)]
        _check_once(path, "tensor", [tensor.name for tensor in listed])
        start = _check_data(source, metadata, listed)
        tensors = tuple(replace(tensor, offset=start + tensor.offset) for tensor in listed)
        return Header((path,), metadata, lengths, tensors, source.size)


def _read_pairs(
    source: _Source, wanted: str | None = None
) -> tuple[int, dict[str, Any], list[str] | None, dict[str, int]]:
    """Read the key-value pairs. Returns the number of tensors that follow, the pairs, the array of strings `wanted`,
    and the lengths of all arrays of strings."""
    path = source.path
    if source.size < 4 or source.take(4) != b"GGUF":
        raise SaapError(f"'{path}' is not a GGUF file")
    version, tensors, pairs = source.numbers("IQQ")
    if version and not version & 0xFFFF:
        raise SaapError(f"'{path}' is a big-endian GGUF file, which no board reads: convert it (gguf-convert-endian)")
    if version not in (2, 3):
        raise SaapError(f"'{path}' is GGUF version {version}, versions 2 and 3 are read")
    keys: list[str] = []
    found: dict[str, Any] = {}
    lengths: dict[str, int] = {}
    strings: list[str] | None = None
    for _ in range(pairs):
        key = source.string()
        keys.append(key)
        kind = source.numbers("I")[0]
        if kind == _STRING:
            found[key] = source.string()
        elif kind != _ARRAY:
            found[key] = source.numbers(_SCALARS[kind])[0]
        else:
            inner, count = source.numbers("IQ")
            if inner != _STRING:
                found[key] = list(source.numbers(f"{count}{_SCALARS[inner]}"))
                continue
            lengths[key] = count
            if key == wanted:
                strings = [source.string() for _ in range(count)]
                continue
            for _ in range(count):
                source.skip(source.numbers("Q")[0])
    _check_once(path, "key", keys)
    return tensors, found, strings, lengths


def _tensor(source: _Source) -> Tensor:
    """Read a tensor's entry. Its offset is the header's own, counted from where the data begin."""
    name = source.string()
    rank = source.numbers("I")[0]
    if not 1 <= rank <= _DIMENSIONS:
        raise SaapError(f"'{source.path}' is damaged: tensor '{name}' has {rank} dimensions")
    shape = source.numbers(f"{rank}Q")
    code, offset = source.numbers("IQ")
    if code not in _TYPES:
        raise SaapError(f"'{source.path}': tensor '{name}' has type {code}, whose size is not known here")
    kind, block, size = _TYPES[code]
    if min(shape) < 1 or shape[0] % block:
        raise SaapError(f"'{source.path}' is damaged: tensor '{name}' of type {kind} has the shape {list(shape)}")
    elements = math.prod(shape)
    return Tensor(name, kind, shape, elements, elements // block * size, source.path, offset)


def _check_data(source: _Source, metadata: dict[str, Any], listed: list[Tensor]) -> int:
    """Check that tensors follow each other without gaps, as llama.cpp demands, and that the file ends with the last.
    Returns where the first begins."""
    path, alignment = source.path, metadata.get("general.alignment", _ALIGNMENT)
    if not _is_count(alignment) or not alignment or alignment & (alignment - 1):
        raise SaapError(f"'{path}' is damaged: general.alignment is {alignment!r}, not a power of two")
    start, at = source.at + -source.at % alignment, 0
    for tensor in listed:
        if tensor.offset != at:
            raise SaapError(f"'{path}' is damaged: tensor '{tensor.name}' begins at {tensor.offset}, not at {at}")
        end = start + at + tensor.bytes
        at += tensor.bytes + -tensor.bytes % alignment
        if end > source.size:
            raise SaapError(
                f"'{path}' is cut short: tensor '{tensor.name}' ends at byte {end}, the file at {source.size}: "
                "copy or download it again"
            )
    if listed and source.size > start + at:
        raise SaapError(f"'{path}' has {source.size - start - at} bytes more than its header lists: copy it again")
    return int(start)


def _check_once(path: Path, what: str, names: list[str]) -> None:
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise SaapError(f"'{path}' is damaged: {what} '{twice}' is there twice")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
