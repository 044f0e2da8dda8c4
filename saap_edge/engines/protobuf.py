"""Fields of a protobuf message, read without the protobuf package: numbers, and the bytes of all else."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["fields", "inside", "message", "text", "varints"]


def inside(value: int | memoryview, wanted: int) -> Iterator[memoryview]:
    yield from (message(body) for number, body in fields(message(value)) if number == wanted)


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
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


def varints(value: memoryview) -> Iterator[int]:
    at = 0
    while at < len(value):
        number, at = _varint(value, at)
        yield number


def message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError
    return value


def text(value: int | memoryview) -> str:
    return bytes(message(value)).decode("utf-8")
