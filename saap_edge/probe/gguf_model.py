"""A GGUF model of known size with meaningless weights, which a probe runs to measure the speed of kernels.

It is written without the gguf package, which a board does not have. Format: ggml/docs/gguf.md, version 3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["BLOCKS", "VOCABULARY", "ProbeModel", "write_probe_model"]

# By quantisation: ggml's type, weights in a block, bytes of a block (an fp16 scale, then the codes).
BLOCKS = {"f16": (1, 1, 2), "q8_0": (8, 32, 34), "q4_0": (2, 32, 18)}
VOCABULARY, HIDDEN, FFN, HEADS = 512, 2048, 6144, 16
_U32, _F32, _STRING = 4, 6, 8
_ALIGNMENT = 32


@dataclass(frozen=True)
class ProbeModel:
    """A probe's model: its file, the `bytes` of weights that decoding a token reads, and the number of weights that
    each token of a prompt multiplies."""

    path: Path
    bytes: int
    prompt_weights: int


def write_probe_model(path: Path, quantisation: str, size: int) -> ProbeModel:
    """Write a Llama model in one quantisation, with as many layers as make about `size` bytes, but at least two.

    `prompt_weights` leaves out the last layer's FFN, which llama.cpp runs only for the last token of a prompt.
    """
    kind, block, block_bytes = BLOCKS[quantisation]
    matrices = {
        "attn_q": (HIDDEN, HIDDEN), "attn_k": (HIDDEN, HIDDEN), "attn_v": (HIDDEN, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN), "ffn_gate": (HIDDEN, FFN), "ffn_up": (HIDDEN, FFN), "ffn_down": (FFN, HIDDEN),
    }  # fmt: skip
    weights = sum(rows * columns for rows, columns in matrices.values())
    layers = max(2, round(size / (weights / block * block_bytes)))
    tensors: list[tuple[str, tuple[int, ...], int, int]] = [
        ("token_embd.weight", (HIDDEN, VOCABULARY), 1, 2 * VOCABULARY * HIDDEN),
        ("output_norm.weight", (HIDDEN,), 0, 4 * HIDDEN),
    ]
    for layer in range(layers):
        for name in ("attn_norm", "ffn_norm"):
            tensors.append((f"blk.{layer}.{name}.weight", (HIDDEN,), 0, 4 * HIDDEN))
        for name, shape in matrices.items():
            length = shape[0] * shape[1] // block * block_bytes
            tensors.append((f"blk.{layer}.{name}.weight", shape, kind, length))
    with path.open("wb") as file:
        header = _header(layers, tensors)
        file.write(header + bytes(-len(header) % _ALIGNMENT))
        for _, _, code, length in tensors:
            file.write(_data(code, length) + bytes(-length % _ALIGNMENT))
    return ProbeModel(path, sum(length for *_, length in tensors), (layers - 1) * weights + 4 * HIDDEN**2)


def _header(layers: int, tensors: list[tuple[str, tuple[int, ...], int, int]]) -> bytes:
    pairs: list[tuple[str, str | float | int]] = [
        ("general.architecture", "llama"), ("general.name", "probe"), ("tokenizer.ggml.model", "no_vocab"),
        ("llama.block_count", layers), ("llama.context_length", 4096), ("llama.embedding_length", HIDDEN),
        ("llama.feed_forward_length", FFN), ("llama.attention.head_count", HEADS),
        ("llama.attention.head_count_kv", HEADS), ("llama.attention.key_length", HIDDEN // HEADS),
        ("llama.attention.value_length", HIDDEN // HEADS), ("llama.rope.dimension_count", HIDDEN // HEADS),
        ("llama.vocab_size", VOCABULARY), ("llama.attention.layer_norm_rms_epsilon", 1e-5),
    ]  # fmt: skip
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(pairs))]
    for name, value in pairs:
        parts.append(_text(name))
        if isinstance(value, str):
            parts.append(struct.pack("<I", _STRING) + _text(value))
        elif isinstance(value, float):
            parts.append(struct.pack("<If", _F32, value))
        else:
            parts.append(struct.pack("<II", _U32, value))
    offset = 0
    for name, shape, kind, length in tensors:
        parts.append(_text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
        parts.append(struct.pack("<IQ", kind, offset))
        offset += length + -length % _ALIGNMENT
    return b"".join(parts)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _data(kind: int, length: int) -> bytes:
    """The bytes of a tensor: ones for norms; else weights of about 0.02, one piece of noise over and over."""
    if kind == 0:
        return np.ones(length // 4, dtype="<f4").tobytes()
    dice = np.random.default_rng(0)
    if kind == 1:
        piece = dice.normal(0, 0.02, 2**16).astype("<f2").tobytes()
    else:
        codes = {8: 32, 2: 16}[kind]
        block = np.zeros(2**12, dtype=[("scale", "<f2"), ("codes", "u1", codes)])
        block["scale"], block["codes"] = 0.02 / {8: 74, 2: 5}[kind], dice.integers(0, 256, (2**12, codes))
        piece = block.tobytes()
    return (piece * (length // len(piece) + 1))[:length]
