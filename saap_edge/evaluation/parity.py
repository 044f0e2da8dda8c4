"""Parity: an artifact in its engine must answer as the torch model with exactly the shipped weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saap_edge.documents.verify import Parity
from saap_edge.engines.answers import relative_error
from saap_edge.errors import ParityError
from saap_edge.evaluation.arithmetic import runtime_arithmetic
from saap_edge.exporting.weights import OTHER_WEIGHT, ExportWeights
from saap_edge.formats import format_of
from saap_edge.model.blocks import BLOCK, dequantise
from saap_edge.model.folder import load_model
from saap_edge.registry import resolve

__all__ = [
    "MODES", "Parity", "check_parity", "logits", "relative_error", "require", "shipped_model", "tolerated",
]  # fmt: skip

# The tolerance is MARGIN times the error that emulating the runtime's arithmetic predicts for the same tokens
# (arithmetic.py). Measured errors were within 10 % of the prediction (benchmarks/arithmetic.py). The margin allows for
# processors that sum in another order, so that a few other activations are rounded differently.
MARGIN = 2.0
# The whole prompt at once; one token at a time; a prompt, then single tokens.
MODES = ("prefill", "steps", "mixed")


def shipped_model(folder: Path, artifact_format: str, group: int = BLOCK, artifact: Path | None = None) -> Any:
    """The torch model (float32) with exactly the weights, to the bit, that an artifact of that format holds.

    Args:
        folder: the Hugging Face folder that was exported.
        group: that of the export.
        artifact: the file. Weights in types that llama.cpp makes are read from it, as only llama.cpp knows their codes.

    Raises SaapError when the folder is not a model, ParityError when the file's weights are not those of the folder.
    """
    model = load_model(folder)
    weights = ExportWeights(folder)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim == 2}
    with torch.no_grad():
        for name, value in _shipped(weights, list(parameters), artifact_format, group, artifact):
            if name in parameters:  # the exporter may have added a sublayer that only the file has
                rows, columns = parameters[name].shape
                parameters[name].copy_(value[:rows, :columns])
    return model


def _shipped(
    weights: ExportWeights, names: list[str], artifact_format: str, group: int, artifact: Path | None
) -> Iterator[tuple[str, torch.Tensor]]:
    reader = format_of(artifact_format).shipped
    if artifact is not None and reader is not None:
        for name, value in resolve(reader)(artifact, weights):
            own = weights.tensor(name).numpy()
            if np.linalg.norm(value - own) > OTHER_WEIGHT * np.linalg.norm(own):
                raise ParityError(f"'{artifact}': {name} is not the model's weight: export again")
            yield name, torch.from_numpy(value)
        names = [name for name in names if name not in weights.projections]
    for name in names:
        yield name, _coded(weights, name, artifact_format, group)


def _coded(weights: ExportWeights, name: str, artifact_format: str, group: int) -> torch.Tensor:
    floats = weights.floats(name, artifact_format)
    if floats is not None:
        return weights.tensor(name, floats).float()
    layout = weights.layout(artifact_format, group) if name in weights.projections else None
    layout = layout or weights.vocabulary(artifact_format, weights.shape(name)[1])
    return dequantise(weights.blocks(name, *layout))


def check_parity(
    reference: Any, worker: Any, artifact: tuple[ExportWeights, str, int], role: str, tokens: list[int], decode: Any
) -> Parity:
    """Compare the logits of an artifact with those of the torch model, in all MODES.

    Args:
        reference: the artifact's `shipped_model`.
        worker: the process that runs the artifact.
        artifact: the folder it was exported from, its format, and the export's group.
        tokens: ids of a real text.
        decode: turns ids into text.

    The result also has some greedy text. A difference raises nothing: `passed` is False then.
    """
    weights, artifact_format, group = artifact
    expected = logits(reference, tokens)
    with runtime_arithmetic(reference, weights, artifact_format, group):
        predicted = relative_error(logits(reference, tokens), expected)
    tolerance = tolerated(predicted, artifact_format)
    worst = max(relative_error(worker.logits(tokens, mode), expected) for mode in MODES)
    text = decode(worker.generate(tokens[:16], 24))
    return Parity(
        format=artifact_format, role=role, max_error=worst, tolerance=tolerance, passed=worst <= tolerance,
        greedy_text=text,
    )  # fmt: skip


def tolerated(predicted: float, artifact_format: str) -> float:
    """The relative error of logits that is allowed if emulating the runtime's arithmetic gives `predicted`.

    A prediction that is not finite, as when activations exceed fp16, allows no more than the format's own tolerance.

    >>> tolerated(0.03, "gguf-q4_0")
    0.06
    """
    return max(MARGIN * predicted if np.isfinite(predicted) else 0.0, format_of(artifact_format).tolerance)


def logits(model: Any, tokens: list[int]) -> np.ndarray:
    """Logits of a torch model for one text, float32 [tokens, vocab]."""
    with torch.no_grad():
        answer: np.ndarray = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float().numpy()
    return answer


def require(parities: list[Parity]) -> None:
    """Raise ParityError that names every artifact which answers differently from its torch model."""
    bad = [
        f"{p.role} {p.format} (error {p.max_error:.3g}, tolerance {p.tolerance:.3g})" for p in parities if not p.passed
    ]
    if bad:
        raise ParityError(f"refused, answers differ from the torch model: {', '.join(bad)}")
