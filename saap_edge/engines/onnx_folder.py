"""The configuration beside an ONNX graph: genai_config.json, or optimum's config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saap_edge.errors import SaapError

if TYPE_CHECKING:
    from saap_edge.engines.onnx_header import Graph

__all__ = ["GENAI_FILE", "head_size", "onnx_context"]

GENAI_FILE, CONFIG_FILE = "genai_config.json", "config.json"


def onnx_context(folder: Path, graph: Graph) -> int | None:
    """Tokens of the longest sequence, from the graph and the configuration beside it; None where neither states it.

    Raises SaapError where the configuration is damaged, or belongs to another graph.
    """
    told = [] if graph.context is None else [graph.context]
    keys: tuple[str, ...]
    if (folder / GENAI_FILE).exists():
        path, key, keys = folder / GENAI_FILE, "context_length", ("model", "context_length")
        layers = _number(path, ("model", "decoder", "num_hidden_layers"))
        if layers != graph.layers:
            raise SaapError(f"'{path}' is another model's: it has {layers} layers, the graph beside it {graph.layers}")
    elif (folder / CONFIG_FILE).exists():
        path, key, keys = folder / CONFIG_FILE, "max_position_embeddings", ("max_position_embeddings",)
    else:
        return min(told, default=None)
    value = _number(path, keys)
    if graph.context is not None and value > graph.context:
        raise SaapError(f"'{path}' does not add up: {key} is {value}, the graph beside it holds {graph.context}")
    return min([*told, value])


def head_size(folder: Path) -> int:
    """Width of a head. Graphs of genai's builder leave it open. Raises SaapError where the configuration lacks it."""
    return _number(folder / GENAI_FILE, ("model", "decoder", "head_size"))


def _number(path: Path, keys: tuple[str, ...]) -> int:
    """A number of a JSON file, at least 1."""
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
        for key in keys:
            value = value[key]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise SaapError(f"'{path}' does not say its {keys[-1]}: export the model again") from None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SaapError(f"'{path}' is damaged: {keys[-1]} is {value!r}")
    return value
