"""Settings of the export (recipe: export)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from saap_edge.formats import FormatName
from saap_edge.settings import Section

__all__ = ["FORMATS", "ExportSettings"]

FORMATS: tuple[str, ...] = ("gguf-f16", "gguf-q8_0", "gguf-q4_0", "onnx-fp32", "onnx-int4")


class ExportSettings(Section):
    """What to write."""

    formats: tuple[FormatName, ...] = Field(
        default=FORMATS, min_length=1, description="artifacts, dense and pruned alike"
    )
    group: Literal[32, 64, 128, 256] = Field(
        default=32,
        description="inputs that share a scale in ONNX and OpenVINO, dense and pruned alike; a tuned model keeps the "
        "group it was tuned in, GGUF its own 32",
    )
