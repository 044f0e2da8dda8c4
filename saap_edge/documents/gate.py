"""gate.json: verdicts on limits."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from saap_edge.documents.base import Document, Number, Part

__all__ = ["Gate", "GateConditions", "GateMachine", "Kind", "Verdict", "Word"]

Word = Literal["pass", "fail", "inconclusive"]


class Kind(StrEnum):
    """What a figure rests on, and so where a limit on it can be judged."""

    BOARD = "on the board"  # belongs to the machine it was taken on: judged where that is the target
    RATIO = "side by side"  # of two artifacts by turns in one run: holds on a shared runner
    COUNTED = "counted"  # the same on every machine: bytes, parameters, perplexity
    SAMPLED = "sampled"  # a share of questions: the same on every machine, but other questions would give another
    PREDICTED = "predicted"  # computed from the target's figures, never a measurement
    CHANGE = "against the baseline"  # of a counted figure, in percent


class Verdict(Part):
    """What became of one limit on one artifact."""

    metric: str = Field(description="what the limit is on (docs/gate.md); its name ends with the unit")
    kind: Kind = Field(description="what the figure rests on")
    artifact: str | None = Field(description="the artifact's format; null: the limit is on any, and there was none")
    name: str | None = Field(description="the artifact's own name; null: it was not benched")
    limit: str = Field(description="the limit as people write it, in the metric's unit")
    value: Number = Field(default=None, description="the figure, in the metric's unit; null: there is none")
    low: Number = Field(default=None, description="lower end of its interval, measured or predicted; else the figure")
    high: Number = Field(default=None, description="upper end of its interval, measured or predicted; else the figure")
    verdict: Word = Field(description="pass, fail, or inconclusive where the evidence does not decide")
    reason: str = Field(description="the figure in words, or why there is none")
    limit_index: int = Field(description="place of the limit in the budget, from 0")


class GateMachine(Part):
    """Where it was measured: what a reader of verdicts has to know."""

    cpu: str = Field(description="model of the CPU, as the kernel names it")
    cores: int = Field(description="CPUs that the system counts")


class GateConditions(Part):
    """How it was measured: what a reader of verdicts has to know."""

    threads: int | None = Field(default=None, description="threads of every runtime")
    prompt_tokens: int = Field(description="tokens of the prompt")
    decode_tokens: int = Field(description="tokens decoded a round")
    rounds: int | None = Field(default=None, description="rounds that count")
    kv: str | None = Field(default=None, description="type of the KV cache asked for; null: each runtime's own")
    looks: list[int] | None = Field(default=None, description="after how many rounds a verdict may be reached")
    versions: dict[str, str] | None = Field(default=None, description="version of each package that took part")


class Gate(Document):
    """The gate document: `saap-edge gate --json`, and the file gate.json of a run."""

    VERSION = 1
    REMEDY = "judge again with this version, or read it with the one that wrote it"

    version: Literal[1] = Field(default=1, description="version of this format; missing in older documents")
    exit_code: int = Field(description="0 pass, 1 fail, 3 inconclusive")
    verdict: str = Field(description='pass, fail, inconclusive, or "no limits given"')
    model: str | None = Field(description="name of the model; null: unknown")
    target: str | None = Field(description="title of the board that the limits are for; null: none was named")
    machine: GateMachine = Field(description="where it was measured")
    conditions: GateConditions = Field(description="how it was measured")
    verdicts: list[Verdict] = Field(description="one for each limit and artifact")

    @classmethod
    def version_of(cls, document: Mapping[str, Any]) -> Any:
        """A document that states no version is of the first: older ones had none."""
        return document.get("version", 1)
