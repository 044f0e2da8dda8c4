"""Measuring ONNX Runtime's products with 4 and 8-bit weights, on a graph that is written without the onnx package.

The graph is a chain of MatMulNBits nodes as in saap-edge's exports. onnx/onnx.proto has the numbers of its fields.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from saap_edge.formats import format_of

__all__ = ["CODES", "measure_onnx_kernel", "write_probe_graph"]

CODES = ("int4", "int8")
HIDDEN, FFN, GROUP = 2048, 6144, 32
PROMPT, DECODE = 64, 16
_FLOAT, _UINT8, _INT = 1, 2, 2  # TensorProto.FLOAT and UINT8, AttributeProto.INT


def measure_onnx_kernel(quantisation: str, threads: int, size: int, rounds: int) -> tuple[float, float]:
    """Speed of ONNX Runtime's kernels: (GB/s of codes and scales read, 10^9 multiply-adds a second with 64 rows).

    The figure is the best round's, as in `board.measure_kernel`.
    """
    from saap_edge.engines.onnxruntime import open_session

    with tempfile.TemporaryDirectory(prefix="saap-edge-probe-") as folder:
        path = Path(folder) / "probe.onnx"
        read, weights = write_probe_graph(path, int(format_of(f"onnx-{quantisation}").bits or 0), size)
        session = open_session(path, threads)
        dice = np.random.default_rng(0)
        one, many = (dice.normal(size=(rows, HIDDEN)).astype(np.float32) for rows in (1, PROMPT))
        steps, prefills = [], []
        for _ in range(1 + rounds):  # the first warms up
            prefills.append(_seconds(session, many))
            steps.append(float(np.median([_seconds(session, one) for _ in range(DECODE)])))
    return read / min(steps[1:]) / 1e9, PROMPT * weights / min(prefills[1:]) / 1e9


def _seconds(session: object, x: np.ndarray) -> float:
    start = time.perf_counter()
    session.run(None, {"x": x})  # type: ignore[attr-defined]
    return time.perf_counter() - start


def write_probe_graph(path: Path, bits: int, size: int) -> tuple[int, int]:
    """Write the graph, and beside it weights of about `size` bytes. Returns (bytes, number) of the weights."""
    codes, scales = HIDDEN * FFN * bits // 8, HIDDEN * FFN // GROUP * 4
    pairs = max(1, round(size / (codes + scales) / 2))
    nodes, tensors, at, name = b"", b"", 0, "x"
    data = path.with_suffix(".bin")
    dice = np.random.default_rng(0)
    noise = dice.integers(0, 256, 2**16, dtype=np.uint8).tobytes()
    scale = np.full(scales // 4, 0.02 / (5 if bits == 4 else 74), dtype="<f4").tobytes()
    with data.open("wb") as file:
        for index in range(2 * pairs):
            columns, rows = (HIDDEN, FFN) if index % 2 == 0 else (FFN, HIDDEN)
            file.write((noise * (codes // len(noise) + 1))[:codes] + scale)
            blocks = columns // GROUP
            for part, kind, shape, length in (
                ("codes", _UINT8, [rows, blocks, GROUP * bits // 8], codes),
                ("scales", _FLOAT, [rows * blocks], scales),
            ):  # fmt: skip
                tensors += _field(5, _tensor(f"{part}{index}", kind, shape, data.name, at, length))
                at += length
            nodes += _field(1, _node(name, index, {"K": columns, "N": rows, "bits": bits}))
            name = f"y{index}"
    graph = nodes + _field(2, b"probe") + tensors + _field(11, _value("x", HIDDEN)) + _field(12, _value(name, HIDDEN))
    opsets = _field(8, _field(1, b"") + _number(2, 21)) + _field(8, _field(1, b"com.microsoft") + _number(2, 1))
    path.write_bytes(_number(1, 10) + opsets + _field(7, graph))
    return at, 2 * pairs * HIDDEN * FFN


def _node(name: str, index: int, sizes: dict[str, int]) -> bytes:
    inputs = b"".join(_field(1, text.encode()) for text in (name, f"codes{index}", f"scales{index}"))
    attributes = b"".join(
        _field(5, _field(1, key.encode()) + _number(3, value) + _number(20, _INT))
        for key, value in (sizes | {"block_size": GROUP, "accuracy_level": 4}).items()
    )
    body = _field(2, f"y{index}".encode()) + _field(3, f"product{index}".encode()) + _field(4, b"MatMulNBits")
    return inputs + body + attributes + _field(7, b"com.microsoft")


def _tensor(name: str, kind: int, shape: list[int], file: str, offset: int, length: int) -> bytes:
    outside = {"location": file, "offset": str(offset), "length": str(length)}
    pairs = b"".join(_field(13, _field(1, key.encode()) + _field(2, text.encode())) for key, text in outside.items())
    return (
        b"".join(_number(1, size) for size in shape)
        + _number(2, kind)
        + _field(8, name.encode())
        + pairs
        + _number(14, 1)
    )


def _value(name: str, width: int) -> bytes:
    """A float matrix of any number of rows."""
    shape = _field(1, _field(2, b"rows")) + _field(1, _number(1, width))
    return _field(1, name.encode()) + _field(2, _field(1, _number(1, _FLOAT) + _field(2, shape)))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _field(field: int, body: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(body)) + body


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
