"""Rows of matrices as GGUF files hold them: their order, and their blocks."""

from __future__ import annotations

import numpy as np

from saap_edge.model.blocks import BLOCK, Blocks

__all__ = ["pack", "permute", "unpermute"]


def permute(rows: np.ndarray, heads: int | None) -> np.ndarray:
    """Reorder the rows of q or k from halves (Hugging Face) to pairs, as llama.cpp's NORM rope wants them.

    `rows` is [heads * head_dim, ...]; None leaves it alone. Works on weights, biases and packed blocks alike, because
    only whole rows move (llama.cpp, LlamaModel.permute).
    """
    if heads is None:
        return rows
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def unpermute(rows: np.ndarray, heads: int | None) -> np.ndarray:
    """The inverse of `permute`."""
    if heads is None:
        return rows
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def pack(blocks: Blocks) -> np.ndarray:
    """GGUF's blocks, uint8 [out, bytes]: scale and, in Q4_1, minimum in fp16; then 32 signed bytes, or 16 bytes with
    code i low and code i + 16 high."""
    rows, columns = blocks.codes.shape
    count, half = columns // BLOCK, BLOCK // 2
    figures = [figure for figure in (blocks.scales, blocks.offsets) if figure is not None]
    spread = [figure.repeat_interleave(blocks.group // BLOCK, 1)[:, :count].numpy() for figure in figures]
    head, codes = 2 * len(figures), blocks.codes.numpy().reshape(rows, count, BLOCK)
    packed = np.empty((rows, count, head + BLOCK * blocks.format.bits // 8), dtype=np.uint8)
    packed[..., :head] = np.stack(spread, axis=-1).view(np.uint8)
    body = packed[..., head:]  # filled in place: a vocabulary's codes are too large for copies
    if blocks.format.bits == 8:
        np.bitwise_xor(codes, 0x80, out=body)
    else:
        np.left_shift(codes[..., half:], 4, out=body)
        body |= codes[..., :half]
    return packed.reshape(rows, -1)
