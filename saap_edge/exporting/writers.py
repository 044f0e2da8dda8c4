"""The writers that our formats name. All are called alike, and call the exporters.

The call is `writer(folder, out, format, export)`: the Hugging Face folder, dense or pruned; the file or folder to make;
the format's record; and the settings of the whole export. A writer returns a JSON-able summary with `projection_bytes`,
the weight bytes that decoding one token reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saap_edge.errors import SaapError
from saap_edge.formats import Format
from saap_edge.model.blocks import BLOCK

__all__ = ["Export", "by_llama_cpp", "gguf", "hugging_face", "onnx", "openvino", "optimum"]


def _no_source(format: Format) -> Path:
    raise SaapError(f"'{format.name}' is made of another artifact: export it with the others")


@dataclass(frozen=True)
class Export:
    """Settings of an export, for its writers.

    Attributes:
        group: inputs that share a scale, for formats without a group of their own.
        imatrix: file of the model's importance matrix, or None.
        source: format -> the artifact from which llama.cpp makes it, which is written now if it does not exist yet.
    """

    group: int = BLOCK
    imatrix: Path | None = None
    source: Callable[[Format], Path] = _no_source


def gguf(folder: Path, out: Path, format: Format, export: Export) -> dict[str, Any]:
    """Write a GGUF file ourselves."""
    from saap_edge.exporting.gguf import write_gguf

    return write_gguf(folder, out, format.quantisation)


def by_llama_cpp(folder: Path, out: Path, format: Format, export: Export) -> dict[str, Any]:
    """Let llama.cpp make a GGUF file from one of ours."""
    from saap_edge.exporting.kquants import write_kquant

    return write_kquant(folder, export.source(format), out, format.quantisation, export.imatrix)


def onnx(folder: Path, out: Path, format: Format, export: Export) -> dict[str, Any]:
    """Write an ONNX folder ourselves."""
    from saap_edge.exporting.onnx import write_onnx

    return write_onnx(folder, out, format.quantisation, export.group)


def openvino(folder: Path, out: Path, format: Format, export: Export) -> dict[str, Any]:
    """Write an OpenVINO folder ourselves."""
    from saap_edge.exporting.openvino import write_openvino

    return write_openvino(folder, out, format.quantisation, export.group)


def optimum(folder: Path, out: Path, format: Format, export: Export) -> dict[str, Any]:
    """Write an ONNX folder with optimum's exporter."""
    from saap_edge.exporting.optimum import write_optimum

    return write_optimum(folder, out)


def hugging_face(folder: Path, out: Path, format: Format, export: Export) -> dict[str, Any]:
    """Write a Hugging Face folder in float32, in the family's canonical form, as transformers saves it."""
    from saap_edge.engines.torch import folder_cost
    from saap_edge.model.folder import load_model, save_model

    save_model(load_model(folder), folder, out)
    cost = folder_cost(out, format.name)
    return {
        "quantisation": format.quantisation, "projection_bytes": cost.projection_bytes, "folder_bytes": cost.file_bytes,
    }  # fmt: skip
