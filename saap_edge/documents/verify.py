"""verify.json: how far each artifact's answers are from torch's."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import ConfigDict, Field

from saap_edge.documents.base import Document, Part

__all__ = ["Parity", "Verify"]


class Parity(Part):
    """The worst relative error of an artifact over all modes, beside the tolerance of its format."""

    model_config = ConfigDict(frozen=True)

    format: str = Field(description='format, as "gguf-q4_0"')
    role: str = Field(description="dense or pruned")
    max_error: float = Field(description="largest relative RMS error of centred logits over all modes, no unit")
    tolerance: float = Field(description="the error that may be, no unit")
    passed: bool = Field(description="the error is within the tolerance")
    greedy_text: str = Field(default="", description="what the artifact says by itself, for people")


class Verify(Document):
    """The verify document: the file verify.json of a run."""

    VERSION = 1
    REMEDY = "verify again with this version"

    version: Literal[1] = Field(default=1, description="version of this format; older documents are the list alone")
    artifacts: list[Parity] = Field(description="one for each artifact, dense and pruned")

    @classmethod
    def parse(cls, document: Any, where: str, inside: str = "") -> Self:
        """Check a document as all others. A bare list is of version 1: older documents had no version."""
        old = isinstance(document, list)
        return super().parse({"version": 1, "artifacts": document} if old else document, where, inside)
