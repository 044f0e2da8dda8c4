"""Values that cannot be exported: not finite, or too large for half precision."""

from __future__ import annotations

from pathlib import Path

import torch

from saap_edge.errors import SaapError
from saap_edge.model.inventory import needed
from saap_edge.model.tensors import TensorStore

__all__ = ["FP16_MAX", "beyond_fp16", "require_finite"]

FP16_MAX = 65504.0
FLOAT32_MAX = torch.finfo(torch.float32).max


def require_finite(folder: Path, name: str, tensor: torch.Tensor) -> float:
    """The largest magnitude in a tensor. Raises SaapError that names the tensor if a value is not finite in float32."""
    low, high = torch.aminmax(tensor)  # both are NaN if any value is
    largest = float(torch.maximum(-low, high))
    if not largest <= FLOAT32_MAX:
        raise SaapError(f"{folder}: {name} holds values that are no finite numbers: the checkpoint is damaged")
    return largest


def _largest(folder: Path) -> dict[str, float]:
    """The largest magnitude of every matrix, by name. Reads the whole model, a piece at a time.

    Raises SaapError as `require_finite`, also for norms and biases.
    """
    store = TensorStore(folder)
    found = {}
    for name, shape in needed(store.spec).items():
        largest = max(require_finite(folder, store.stored_name(name), piece) for piece in store.pieces(name))
        if len(shape) > 1:
            found[name] = largest
    return found


def beyond_fp16(folder: Path) -> dict[str, float]:
    """Largest magnitude of each matrix with values beyond half precision. Raises SaapError as `require_finite`."""
    return {name: largest for name, largest in _largest(folder).items() if largest > FP16_MAX}
