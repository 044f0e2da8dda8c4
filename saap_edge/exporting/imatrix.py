"""Saves and reads an importance matrix (recovery/imatrix.py measures one)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from saap_edge.errors import SaapError

__all__ = ["FILE", "read_importance", "save_importance"]

FILE = "imatrix.safetensors"


def save_importance(matrix: dict[str, np.ndarray], folder: Path) -> Path:
    """Write `matrix` (weight name -> float32 [in]) to FILE in `folder`; returns the file's path."""
    path = folder / FILE
    save_file(matrix, path)
    return path


def read_importance(path: Path) -> dict[str, np.ndarray]:
    """The matrix that `save_importance` wrote. Raises SaapError when the file is missing or damaged."""
    try:
        matrix: dict[str, np.ndarray] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise SaapError(f"'{path}' is not an importance matrix: {str(error).splitlines()[0]}") from None
    return matrix
