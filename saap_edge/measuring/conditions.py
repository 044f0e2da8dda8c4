"""What is measured, and under what conditions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saap_edge.machine.facts import versions
from saap_edge.measuring.statistics import look_confidence, planned_looks

__all__ = ["BenchConditions", "Subject", "longest_sequence"]


@dataclass(frozen=True)
class Subject:
    """One artifact to measure, under a `name` of its own.

    `role` is "dense", "pruned", "baseline" or "candidate"; `projection_bytes` are the weight bytes that decoding a
    token reads; `parameters` those of the model (None: unknown); `model` says which model it was made from (None:
    unknown).
    """

    name: str
    role: str
    engine: str
    format: str
    path: Path
    projection_bytes: int
    file_bytes: int
    parameters: int | None = None
    model: str | None = None


def longest_sequence(prompt_tokens: int, contexts: Iterable[int], decode_tokens: int) -> int:
    """Tokens of the longest sequence that is timed: behind the prompt, or at the deepest context."""
    return max(prompt_tokens, *contexts, 0) + decode_tokens


@dataclass(frozen=True)
class BenchConditions:
    """What every figure is measured under.

    `windows` are token ids for perplexity (none: it is not measured); `contexts` are the depths, in tokens, at which
    decoding is measured besides; `max_rounds` bounds rounds that are added while a verdict is open (None: none are);
    `instructions` are counted where that is asked for, because it may take a minute.
    """

    threads: int
    prompt_tokens: int
    decode_tokens: int
    rounds: int
    windows: list[list[int]] = field(default_factory=list)
    text_sha256: str | None = None
    contexts: tuple[int, ...] = ()
    max_rounds: int | None = None
    instructions: bool = False

    @property
    def looks(self) -> tuple[int, ...]:
        """After how many rounds a verdict may be reached."""
        return planned_looks(self.rounds, self.max_rounds or self.rounds)

    @property
    def context(self) -> int:
        """Tokens the KV cache has to hold."""
        return max([self.prompt_tokens + self.decode_tokens, *map(len, self.windows)])

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; of the windows only how many tokens they predict."""
        return {
            "threads": self.threads,
            "prompt_tokens": self.prompt_tokens,
            "decode_tokens": self.decode_tokens,
            "rounds": self.rounds,
            "looks": list(self.looks),
            "confidence": look_confidence(len(self.looks)),
            "versions": versions(),
            "contexts": list(self.contexts),
            "perplexity_window": len(self.windows[0]) if self.windows else 0,
            "perplexity_tokens": sum(len(window) - 1 for window in self.windows),
            "perplexity_text_sha256": self.text_sha256,
        }
