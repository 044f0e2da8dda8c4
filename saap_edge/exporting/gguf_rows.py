"""Rows of matrices in GGUF files: their order, and their blocks."""

from __future__ import annotations

import numpy as np

from saap_edge.model.blocks import BLOCK, Blocks

__all__ = ["pack", "permute", "placed", "unpermute"]


def permute(rows: np.ndarray, heads: int | None) -> np.ndarray:
    """Reorder the rows of q or k from halves (Hugging Face) to pairs, for llama.cpp's NORM rope.

    `rows` is [heads * head_dim, ...]; `heads` None leaves it as it is. Only whole rows move, so weights, biases and
    packed blocks are treated alike. The same as LlamaModel.permute in llama.cpp's converter.

    >>> permute(np.arange(4), heads=1).tolist()
    [0, 2, 1, 3]
    """
    if heads is None:
        return rows
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def unpermute(rows: np.ndarray, heads: int | None) -> np.ndarray:
    """The inverse of `permute`."""
    if heads is None:
        return rows
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def placed(rows: np.ndarray, places: np.ndarray, count: int) -> np.ndarray:
    """`count` rows that have these at `places` and zeros elsewhere; bytes of zeros are zeros in every type of blocks.

    >>> placed(np.array([5, 7]), np.array([0, 2]), 4).tolist()
    [5, 0, 7, 0]
    """
    whole = np.zeros((count, *rows.shape[1:]), dtype=rows.dtype)
    whole[places] = rows
    return whole


def pack(blocks: Blocks) -> np.ndarray:
    """Blocks in GGUF's bytes, uint8 [out, bytes] (ggml-common.h).

    A block begins with its fp16 scale and, in Q4_1, its fp16 minimum. Then come 32 signed bytes, or 16 bytes with code
    i in the low and code i + 16 in the high half.

    >>> import torch
    >>> from saap_edge.model.blocks import BLOCK_FORMATS, quantise
    >>> pack(quantise(torch.tensor([[-8.0] * 16 + [7.0] * 16]), BLOCK_FORMATS["q4_0"])).tobytes().hex(" ", 2)
    '003c f0f0 f0f0 f0f0 f0f0 f0f0 f0f0 f0f0 f0f0'
    """
    rows, columns = blocks.codes.shape
    count, half = columns // BLOCK, BLOCK // 2
    figures = [figure for figure in (blocks.scales, blocks.offsets) if figure is not None]
    spread = [figure.repeat_interleave(blocks.group // BLOCK, 1)[:, :count].numpy() for figure in figures]
    head, codes = 2 * len(figures), blocks.codes.numpy().reshape(rows, count, BLOCK)
    packed = np.empty((rows, count, head + BLOCK * blocks.format.bits // 8), dtype=np.uint8)
    packed[..., :head] = np.stack(spread, axis=-1).view(np.uint8)
    body = packed[..., head:]  # filled in place: the codes of a vocabulary are too large to copy
    if blocks.format.bits == 8:
        np.bitwise_xor(codes, 0x80, out=body)
    else:
        np.left_shift(codes[..., half:], 4, out=body)
        body |= codes[..., :half]
    return packed.reshape(rows, -1)
