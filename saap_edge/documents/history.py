"""history.json: figures of many runs, in order, so that what changed and when can be seen."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from saap_edge.documents.base import Document, Number, Part
from saap_edge.documents.gate import Word
from saap_edge.documents.measured import Ratio, Summary

__all__ = ["History", "HistoryPoint", "HistoryRun"]


class HistoryRun(Part):
    """One bench document, and the verdict on it."""

    label: str = Field(description="name of the run: as given, or that of its folder or file")
    file: str = Field(description="the document that was read")
    measured_at: str | None = Field(default=None, description="when measuring ended, UTC, ISO 8601; null: not told")
    model: str | None = Field(
        default=None, description="name of the dense model, or the begin of its hash; null: unknown"
    )
    board: str = Field(description="host, device tree's name or CPU that it was measured on")
    verdict: Word | None = Field(default=None, description="of the gate; null: no limits were judged")
    failed: list[str] = Field(default_factory=list, description="limits that did not pass, a line each")
    changed: list[str] = Field(
        default_factory=list,
        description="conditions and versions that differ from the run before of the same model and board",
    )


class HistoryPoint(Part):
    """Figures of one artifact in one run."""

    run: int = Field(description="place of the run in `runs`, from 0")
    artifact: str = Field(description="its own name, in every run the same")
    against: str | None = Field(default=None, description="the artifact that ratios compare with; null: none")
    decode_ratio: Ratio | None = Field(default=None, description="ratio of decode rates; null: not compared")
    prefill_ratio: Ratio | None = Field(default=None, description="ratio of prefill rates; null: not compared")
    decode_tok_s: Summary | None = Field(default=None, description="decode rate, tokens/s; null: not measured")
    peak_rss_mib: Number = Field(default=None, description="highest resident memory of a process, MiB")
    held_mib: Number = Field(default=None, description="of it, what the kernel cannot drop, MiB")
    file_mib: Number = Field(default=None, description="size of the artifact, MiB")
    perplexity: Number = Field(default=None, description="by the artifact in its own runtime, no unit")


class History(Document):
    """The history document: `saap-edge history --json`."""

    VERSION = 1
    REMEDY = "make it again with this version from the runs' own documents"

    version: Literal[1] = Field(default=1, description="version of this format")
    runs: list[HistoryRun] = Field(description="in the order of the page")
    points: list[HistoryPoint] = Field(description="figures of every artifact of every run")
