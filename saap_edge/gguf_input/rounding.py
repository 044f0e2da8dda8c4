"""Estimates the rounding error that a GGUF file's quantisation has already caused.

In a block values were rounded to multiples of a step. The error is spread evenly over a step, so its variance is
step^2 / 12. Types with uneven steps are listed without an estimate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import gguf
import numpy as np

from saap_edge.gguf_file.reader import GgufModel, ggml_type

__all__ = ["rounding_note", "rounding_of"]

_FLOATS = ("F32", "F16", "BF16")
_KEPT = ("Q4_0", "Q4_1", "Q8_0")  # rounding dequantised values again gives the same blocks
_SAMPLE = 1 << 16  # numbers of each matrix that are examined


def _first_half(blocks: np.ndarray) -> np.ndarray:
    """Types whose blocks begin with an fp16 scale, the step of all values."""
    return np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)


def _four_and_five(blocks: np.ndarray) -> np.ndarray:
    """Q4_K and Q5_K: eight scales of 6 bits, times the block's."""
    scales: np.ndarray = gguf.quants.Q4_K.get_scale_min(blocks[:, 4:16])[0]
    return np.asarray(_first_half(blocks) * scales)


def _six(blocks: np.ndarray) -> np.ndarray:
    """Q6_K: sixteen scales of 8 bits before the block's own."""
    scale = np.ascontiguousarray(blocks[:, -2:]).view(np.float16).astype(np.float32)
    return scale * np.ascontiguousarray(blocks[:, -18:-2]).view(np.int8)


# Steps of blocks [blocks, bytes], by type: [blocks, steps], each of equally many values.
_STEPS: dict[str, Callable[[np.ndarray], np.ndarray]] = dict.fromkeys(
    ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"), _first_half
) | {"Q4_K": _four_and_five, "Q5_K": _four_and_five, "Q6_K": _six}


def rounding_of(model: GgufModel) -> dict[str, Any]:
    """How many matrices have each type ("types"), and the estimated rounding error of each type ("rounding").

    The error is the RMS of the rounding over that of the weights; None if it cannot be estimated for the type.
    """
    matrices = [tensor for tensor in model.header.tensors if len(tensor.shape) > 1]
    types = Counter(ggml_type(tensor).name for tensor in matrices)
    lost: dict[str, float | None] = {}
    for kind in types:
        of_kind = [tensor for tensor in matrices if ggml_type(tensor).name == kind]
        if kind in _STEPS:
            shares = [_lost(model, tensor.name, kind) for tensor in of_kind]
            lost[kind] = round(float(np.sqrt(np.mean(np.square(shares)))), 4)
        elif kind not in _FLOATS:
            lost[kind] = None
    return {"types": dict(types.most_common()), "rounding": lost}


def _lost(model: GgufModel, name: str, kind: str) -> float:
    rows, columns = model.shape(name) or (1, 1)
    first = rows // 2
    last = min(rows, first + max(1, _SAMPLE // columns))
    blocks = model.packed(name, first, last)
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
    steps = _STEPS[kind](blocks.reshape(-1, size))
    values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    power = float(np.square(values, dtype=np.float64).mean())
    return float(np.sqrt(np.square(steps, dtype=np.float64).mean() / 12 / power)) if power else 0.0


def rounding_note(name: str, found: dict[str, Any]) -> str | None:
    """A line about the result of `rounding_of`, for people; None if nothing is quantised."""
    types, lost = found["types"], found["rounding"]
    if not lost:
        return None
    total = sum(types.values())
    listed = ", ".join(f"{types[kind]} {kind}" + (f" ({_percent(lost[kind])})" if lost[kind] else "") for kind in lost)
    usual = next(iter(types))
    same = f"gguf-{usual.lower()} keeps them as they are, others round" if usual in _KEPT else "quantised formats round"
    return (
        f"{name} is quantised already: of {total} matrices {listed}; in brackets, the share of a weight's RMS that "
        f"was lost, by the steps of its blocks. Of the dense model {same} once more: give the unquantised model if you "
        "have it"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
