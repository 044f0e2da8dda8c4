"""The two block formats everything ships in, as codes and scales: 4 bits and 8 bits, symmetric, one scale a block.

GGUF Q4_0 and symmetric 4-bit MatMulNBits store w = scale * (code - 8); GGUF Q8_0 stores w = scale * code and 8-bit
MatMulNBits w = scale * (code + 128 - 128). So one (codes, scales) pair is exact in both runtimes (ggml-common.h,
block_q4_0 and block_q8_0; onnxruntime contrib operators, MatMulNBits).
"""

from __future__ import annotations

import numpy as np

__all__ = ["BLOCK", "dequantise_q4", "dequantise_q8", "quantise_q4", "quantise_q8"]

BLOCK = 32


def quantise_q4(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round to nearest in Q4_0, bit for bit as gguf-py and llama.cpp do.

    `weight` is float [..., n], n a multiple of 32. Returns (codes uint8 [..., n] in 0..15, scales float16 [..., n/32]).
    """
    blocks = _blocks(weight)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1)[..., None], axis=-1)
    scale = extreme / np.float32(-8)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale == 0, 0, 1 / scale).astype(np.float32)
    # llama.cpp truncates x/d + 8.5 in float32; the float64 here is how gguf-py reaches the same integers.
    codes = np.trunc(np.float64(blocks) * np.float64(inverse) + 8.5).clip(0, 15).astype(np.uint8)
    return codes.reshape(weight.shape), scale[..., 0].astype(np.float16)


def dequantise_q4(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float32 [..., n] of codes uint8 [..., n] and scales [..., n/group]."""
    group = codes.shape[-1] // scales.shape[-1]
    return (codes.astype(np.float32) - 8) * np.repeat(scales.astype(np.float32), group, axis=-1)


def quantise_q8(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round to nearest in Q8_0, bit for bit as gguf-py and llama.cpp do.

    `weight` is float [..., n], n a multiple of 32. Returns (codes int8 [..., n], scales float16 [..., n/32]).
    """
    blocks = _blocks(weight)
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale == 0, 0, 1 / scale)
    scaled = blocks * inverse
    magnitude = np.abs(scaled)  # ggml's roundf: halves away from zero
    whole = np.floor(magnitude)
    codes = np.sign(scaled) * (whole + np.floor(2 * (magnitude - whole)))
    return codes.astype(np.int8).reshape(weight.shape), scale[..., 0].astype(np.float16)


def dequantise_q8(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float32 [..., n] of codes int8 [..., n] and scales [..., n/32]."""
    group = codes.shape[-1] // scales.shape[-1]
    return codes.astype(np.float32) * np.repeat(scales.astype(np.float32), group, axis=-1)


def _blocks(weight: np.ndarray) -> np.ndarray:
    if weight.shape[-1] % BLOCK:
        raise ValueError(f"rows of {weight.shape[-1]} weights do not divide into blocks of {BLOCK}")
    return np.ascontiguousarray(weight, dtype=np.float32).reshape(*weight.shape[:-1], -1, BLOCK)
