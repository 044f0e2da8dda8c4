"""sweep.json: the recipes of a sweep, what became of each, and the stages that they share (docs/sweep.md)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from saap_edge.documents.base import Document, Number, Part
from saap_edge.documents.measured import Ratio
from saap_edge.documents.report import Estimate

__all__ = ["Became", "Sweep", "SweepArtifact", "SweepRecipe", "SweepStage"]

Became = Literal["to do", "there", "made", "failed", "not run"]


class SweepArtifact(Part):
    """A pruned artifact of one recipe."""

    format: str = Field(description='format, as "gguf-q4_0"')
    file_bytes: int | None = Field(default=None, description="its size, bytes")
    decode_tok_s: Number = Field(default=None, description="decode rate where it was measured, median, tokens/s")
    predicted_decode_tok_s: Estimate | None = Field(
        default=None, description="the same on the target, predicted, tokens/s; null: measured there, or unknown"
    )
    speedup: Ratio | None = Field(default=None, description="decode rate over that of the dense model, by turns")
    perplexity: Number = Field(default=None, description="in its own runtime, no unit")
    perplexity_increase_pct: Number = Field(default=None, description="over the dense model in that format, percent")


class SweepRecipe(Part):
    """One recipe, and what became of it."""

    name: str = Field(description="its name in the sweep; its folder is runs/NAME")
    values: dict[str, Any] = Field(description="what it sets in the base, by dotted field")
    model: str = Field(description="folder, file or hub name of the dense model")
    target: str = Field(description="name of the board that it is compiled for")
    exit_code: int | None = Field(default=None, description="0 ok, 1 a limit failed, 2 not made, 3 one is undecided")
    verdict: str | None = Field(
        default=None, description='of all limits: pass, fail, inconclusive, or "no limits given"; null: not judged'
    )
    reason: str | None = Field(default=None, description="why it was not made; null: it was")
    removed: Number = Field(default=None, description="share of the dense cost that its plan removes, 0 to 1")
    machine: str | None = Field(default=None, description="CPU that it was measured on; null: not measured")
    on_target: bool | None = Field(default=None, description="that was the target; null: not measured")
    artifacts: list[SweepArtifact] = Field(default_factory=list, description="its pruned artifacts")
    stages: dict[str, str] = Field(description="folder of each of its stages below stages/, by the stage's name")


class SweepStage(Part):
    """One stage, which may be that of several recipes."""

    key: str = Field(description="name of its folder below stages/")
    stage: str = Field(description="name of the stage")
    recipes: list[str] = Field(description="names of the recipes that need it")
    became: Became = Field(description="to do, there (already), made, failed, or not run since one before it failed")
    seconds: Number = Field(default=None, description="that it took when it was made; null: it is not")
    estimated_seconds: Number = Field(default=None, description="that were expected, with all CPUs; null: not known")
    estimated_bytes: int | None = Field(default=None, description="memory that was expected, bytes")
    cpus: int = Field(description="CPUs that it computes with")
    node: str | None = Field(default=None, description="name of the machine that made it; null: this one")
    reason: str | None = Field(default=None, description="why it failed")


class Sweep(Document):
    """The sweep document: `saap-edge sweep --json`, and the file sweep.json in its folder."""

    VERSION = 1
    REMEDY = "run the sweep again with this version: what is done is not done again"

    version: Literal[1] = Field(default=1, description="version of this format")
    exit_code: int = Field(description="2 where a stage failed, else 1 where a limit failed, else 3 where one is open")
    recipes: list[SweepRecipe] = Field(description="in the order of the sweep file")
    stages: list[SweepStage] = Field(description="each after those that it reads")
    seconds: Number = Field(default=None, description="that the sweep took; null: it was not run")
    notes: list[str] = Field(default_factory=list, description="what a reader must know, a line each")
