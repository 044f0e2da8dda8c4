"""Reading the fields of a protobuf message without the protobuf package: numbers, and the bytes of everything else."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["fields", "inside", "message", "text", "varints"]


def inside(value: int | memoryview, wanted: int) -> Iterator[memoryview]:
    """The messages in all fields of number `wanted`."""
    yield from (message(body) for number, body in fields(message(value)) if number == wanted)


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of a message's fields: an integer, or the bytes of a text, a message or packed numbers.

    Raises IndexError, KeyError or ValueError where the message is damaged.

    >>> [(number, value if isinstance(value, int) else bytes(value)) for number, value in fields(memoryview(
    ...     b"\\x08\\x96\\x01" b"\\x12\\x02hi"))]
    [(1, 150), (2, b'hi')]
    """
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
    """The integers of a packed field."""
    at = 0
    while at < len(value):
        number, at = _varint(value, at)
        yield number


def message(value: int | memoryview) -> memoryview:
    """The bytes of a field. Raises ValueError for an integer."""
    if isinstance(value, int):
        raise ValueError
    return value


def text(value: int | memoryview) -> str:
    """The text of a field. Raises ValueError for an integer, and for what is not UTF-8."""
    return bytes(message(value)).decode("utf-8")
