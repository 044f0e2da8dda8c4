"""Scoring: one backward pass per calibration batch, reduced to one figure per structure on the fly.

Every parameter's gradient is reduced and freed the moment it is ready, so memory peaks at weights + activations + one
gradient, not weights + all gradients.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from saap_edge.errors import SaapError
from saap_edge.model.folder import spec_of
from saap_edge.model.spec import LayerShape
from saap_edge.prune.importance import structure_importance

__all__ = ["KINDS", "METRICS", "Scores", "load_scores", "save_scores", "score_model"]

KINDS = ("attention", "ffn")
METRICS = ("vector", "element")


@dataclass(frozen=True)
class Scores:
    """Importance per batch, saved so that planning again needs no model.

    `values[layer][kind]` is float32 [2, B, structures]: metrics (vector, element), batches, KV groups or channels.
    `parameters[kind]`: parameters one structure of that kind costs, and `shape`: the dense widths (every layer alike
    in the models handled, but kept per layer).
    """

    values: list[dict[str, np.ndarray]]
    shapes: list[LayerShape]
    hidden: int
    head_dim: int
    calibration: dict[str, Any]


def score_model(
    model: Any, batches: list[torch.Tensor], calibration: dict[str, Any], progress: Callable[[], None] = lambda: None
) -> Scores:
    """Score every KV group and FFN channel of a dense model.

    Args:
        model: a transformers causal LM of a supported family, evaluation mode; its weights are not changed.
        batches: token ids, each [sequences, window]; at least 2.
        calibration: conditions kept beside the scores (text hash, window, ...).
        progress: called after every batch.

    Raises SaapError when the loss is not finite.
    """
    spec = spec_of(model)
    values = [
        {kind: np.zeros((2, len(batches), count), dtype=np.float32) for kind, count in _counts(layer).items()}
        for layer in spec.layers
    ]
    for number, batch in enumerate(batches):
        with _reducing_hooks(model, spec, values, number):
            batch = batch.to(next(model.parameters()).device)
            loss = model(input_ids=batch, labels=batch, use_cache=False).loss
            if not torch.isfinite(loss):
                raise SaapError(f"the loss on calibration batch {number} is {float(loss)}: the model or text is broken")
            loss.backward()
        progress()
    return Scores(values, list(spec.layers), spec.hidden, spec.head_dim, calibration)


def _counts(layer: LayerShape) -> dict[str, int]:
    return {"attention": layer.kv_heads, "ffn": layer.ffn}


@contextmanager
def _reducing_hooks(model: Any, spec: Any, values: list[dict[str, np.ndarray]], number: int) -> Iterator[None]:
    """Only coupled parameters get gradients, each reduced into `values` and dropped."""
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    handles = []
    for index, layer in enumerate(model.model.layers):
        for kind, coupling in zip(KINDS, (spec.family.attention, spec.family.ffn), strict=True):
            target = values[index][kind][:, number]
            for name in (*coupling.rows, *coupling.columns):
                columns = name in coupling.columns
                module = layer.get_submodule(name)
                parameters = [module.weight] if columns or module.bias is None else [module.weight, module.bias]
                for parameter in parameters:
                    parameter.requires_grad_(True)
                    handles.append(parameter.register_post_accumulate_grad_hook(_reducer(target, columns)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(wanted[name])


def _reducer(target: np.ndarray, columns: bool) -> Callable[[torch.Tensor], None]:
    def reduce(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        vector, element = structure_importance(parameter.detach(), parameter.grad, target.shape[1], columns)
        target[0] += vector.cpu().numpy()
        target[1] += element.cpu().numpy()
        parameter.grad = None

    return reduce


def save_scores(scores: Scores, folder: Path) -> None:
    """Write scores.safetensors (layers.N.kind, [2, B, structures]) and scores.json (shapes and conditions)."""
    arrays = {f"layers.{i}.{kind}": layer[kind] for i, layer in enumerate(scores.values) for kind in KINDS}
    save_file(arrays, folder / "scores.safetensors")
    document = {
        "metrics": METRICS,
        "hidden": scores.hidden,
        "head_dim": scores.head_dim,
        "layers": [asdict(shape) for shape in scores.shapes],
        "calibration": scores.calibration,
    }
    (folder / "scores.json").write_text(json.dumps(document, indent=1), encoding="utf-8")


def load_scores(folder: Path) -> Scores:
    """Read what `save_scores` wrote. Raises SaapError when it is missing or damaged."""
    try:
        document = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        arrays = load_file(folder / "scores.safetensors")
        shapes = [LayerShape(**layer) for layer in document["layers"]]
        values = [{kind: arrays[f"layers.{i}.{kind}"] for kind in KINDS} for i in range(len(shapes))]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise SaapError(f"'{folder}' holds no readable scores ({error}): run `saap-edge score` first") from None
    return Scores(values, shapes, document["hidden"], document["head_dim"], document["calibration"])
