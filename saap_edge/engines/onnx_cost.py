"""Context, vocabulary and cost of an ONNX folder, read from its graph and the configuration beside it."""

from __future__ import annotations

from pathlib import Path

from saap_edge.engines.base import ArtifactCost
from saap_edge.engines.onnx_folder import onnx_context
from saap_edge.engines.onnx_header import read_graph
from saap_edge.engines.onnx_prepared import parameters_before

__all__ = ["folder_context", "folder_vocab_size", "onnx_cost"]


def folder_context(path: Path) -> int | None:
    """Tokens of the longest sequence; None where the folder does not state it."""
    return onnx_context(path, read_graph(path / "model.onnx"))


def folder_vocab_size(path: Path) -> int | None:
    """Number of logits for a token; None where the graph does not state it."""
    return read_graph(path / "model.onnx").vocab_size


def onnx_cost(path: Path, artifact_format: str | None) -> ArtifactCost:
    """The cost of an ONNX folder, or of its model.onnx. Without `artifact_format`, the graph names the format.

    Raises SaapError when the graph is damaged, or does not tell how many bytes a token reads.
    """
    path = path.parent if path.suffix == ".onnx" else path
    graph, before = read_graph(path / "model.onnx"), parameters_before(path)
    return ArtifactCost(
        artifact_format or f"onnx-{graph.quantisation}", graph.bytes_per_token, graph.kv_bytes_per_token,
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file()), before or graph.parameters,
        onnx_context(path, graph), prepared=before is not None, state_bytes=graph.state_bytes,
    )  # fmt: skip
