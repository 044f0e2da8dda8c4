"""Codes as bytes, for formats that hold two 4-bit codes in one."""

from __future__ import annotations

import numpy as np

__all__ = ["nibbles"]


def nibbles(codes: np.ndarray) -> np.ndarray:
    """Pack uint8 [rows, columns] in 0..15 two a byte; even columns are the low half.

    >>> nibbles(np.array([[1, 2, 15, 0]], dtype=np.uint8)).tolist()
    [[33, 15]]
    """
    packed: np.ndarray = codes[:, 0::2] | (codes[:, 1::2] << 4)
    return packed
