"""Parity: does an artifact, in its own engine, answer as the torch model that holds exactly the shipped weights?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saap_edge.errors import ParityError
from saap_edge.export.kquants import KQUANTS, held_projections
from saap_edge.export.weights import ExportWeights
from saap_edge.model.blocks import dequantise_q4, dequantise_q8, quantise_q8
from saap_edge.model.folder import load_model

__all__ = [
    "MODES", "TOLERANCE", "Parity", "check_parity", "relative_error", "require", "shipped_model", "tolerance_of",
]  # fmt: skip

# Relative RMS error of centred logits, per format. What remains after the weights are made equal is the runtime's own
# arithmetic: fp32 in another order; f16 KV cache and f16 rounding of activations in llama.cpp; activations rounded to
# 8 bits before every quantised product, in blocks (llama.cpp Q8_0/Q8_K, MatMulNBits accuracy level 4). Measured on
# trained models: 6e-7, 4e-4, 9e-3; on tiny random ones, whose logits amplify rounding, up to 2e-3 in F16 and 3e-2 in 8
# and 4 bits.
# A fault in a single layer of the demo's model (heads swapped, channels out of order) gives 0.025 to 1.0, a wrong rope
# 0.4: the full-precision formats, which share all code with the quantised ones, see the smallest of them too.
TOLERANCE = {"gguf-f16": 0.005, "gguf-q8_0": 0.06, "gguf-q4_0": 0.06, "onnx-fp32": 0.00005, "onnx-int4": 0.06}
# A weight further than this from the folder's is another weight: two bits leave 0.3 to 0.5 of a weight's own RMS,
# rows in another order 1.4.
OTHER_WEIGHT = 0.8
# Whole prompt at once; one token at a time; a prompt, then steps.
MODES = ("prefill", "steps", "mixed")


@dataclass(frozen=True)
class Parity:
    """The worst relative error over all modes, beside the tolerance of the format."""

    format: str
    role: str
    max_error: float
    tolerance: float
    passed: bool
    greedy_text: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def tolerance_of(artifact_format: str) -> float:
    """The tolerance of a format; types that llama.cpp makes differ from its 4 bits in the weights alone."""
    return TOLERANCE.get(artifact_format, TOLERANCE["gguf-q4_0"])


def shipped_model(folder: Path, artifact_format: str, artifact: Path | None = None) -> Any:
    """The torch model (float32) whose weights are, to the bit, what the artifact of that format holds.

    The types that llama.cpp makes are read from the file `artifact`: only llama.cpp knows its codes. Raises SaapError
    when the folder is not a model, ParityError when the file's weights are not the folder's.
    """
    model = load_model(folder)
    weights = ExportWeights(folder)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim == 2}
    with torch.no_grad():
        for name, value in _shipped(weights, list(parameters), artifact_format, artifact):
            if name in parameters:  # what the exporter put back is in the file alone
                rows, columns = parameters[name].shape
                parameters[name].copy_(torch.from_numpy(value[:rows, :columns]))
    return model


def _shipped(
    weights: ExportWeights, names: list[str], artifact_format: str, artifact: Path | None
) -> Iterator[tuple[str, np.ndarray]]:
    if artifact is not None and artifact_format.removeprefix("gguf-") in KQUANTS:
        for name, value in held_projections(artifact, weights):
            own = weights.tensor(name)
            if np.linalg.norm(value - own) > OTHER_WEIGHT * np.linalg.norm(own):
                raise ParityError(f"'{artifact}': {name} is not the model's weight: export again")
            yield name, value
        names = [name for name in names if "_proj" not in name]
    for name in names:
        yield name, _coded(weights, name, artifact_format)


def _coded(weights: ExportWeights, name: str, artifact_format: str) -> np.ndarray:
    if artifact_format == "onnx-fp32":
        return weights.tensor(name)
    if artifact_format == "gguf-f16":
        return weights.tensor(name).astype(np.float16).astype(np.float32)
    if artifact_format in ("gguf-q4_0", "onnx-int4") and "_proj" in name:
        return dequantise_q4(*weights.q4(name))
    return dequantise_q8(*quantise_q8(weights.tensor(name)))


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """RMS of the difference over RMS of `expected`, both [tokens, vocab] and centred per token (softmax ignores it).

    Infinite when `actual` is not finite or has another shape.
    """
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return float("inf")
    actual = actual - actual.mean(axis=-1, keepdims=True)
    expected = expected - expected.mean(axis=-1, keepdims=True)
    return float(np.sqrt(np.square(actual - expected).mean() / np.square(expected).mean()))


def check_parity(
    reference: Any, worker: Any, artifact_format: str, role: str, tokens: list[int], decode: Any
) -> Parity:
    """Compare an artifact running in `worker` with `reference` over all modes; greedy text from the worker.

    `tokens` is a real text's ids, `decode` turns ids into text. Never raises for a difference: `passed` says it.
    """
    with torch.no_grad():
        expected = reference(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float().numpy()
    worst = max(relative_error(worker.logits(tokens, mode), expected) for mode in MODES)
    tolerance = tolerance_of(artifact_format)
    text = decode(worker.generate(tokens[:16], 24))
    return Parity(artifact_format, role, worst, tolerance, worst <= tolerance, text)


def require(parities: list[Parity]) -> None:
    """Raise ParityError naming every artifact that answers differently from its torch model."""
    bad = [
        f"{p.role} {p.format} (error {p.max_error:.3g}, tolerance {p.tolerance:g})" for p in parities if not p.passed
    ]
    if bad:
        raise ParityError(f"refused, answers differ from the torch model: {', '.join(bad)}")
