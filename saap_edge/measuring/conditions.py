"""What is measured, and under which conditions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saap_edge.engines.options import EngineOptions
from saap_edge.machine.facts import versions
from saap_edge.measuring.builds import Build
from saap_edge.measuring.statistics import look_confidence, planned_looks

__all__ = ["BenchConditions", "Subject", "longest_sequence"]


@dataclass(frozen=True)
class Subject:
    """One artifact to measure.

    Attributes:
        name: its name in the document; no two are alike.
        role: "dense", "pruned", "baseline" or "candidate".
        engine, format: names of the engine that runs it and of its format.
        path: what the engine opens.
        projection_bytes: weights that decoding a token reads, bytes.
        file_bytes: its size, bytes.
        parameters: parameters of the model; None: unknown.
        model: hash of the model that it was made from; None: unknown.
        build: which build of the engine's runtime runs it.
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
    build: Build = field(default_factory=Build)


def longest_sequence(prompt_tokens: int, contexts: Iterable[int], decode_tokens: int) -> int:
    """Tokens of the longest sequence that is timed: after the prompt, or at the deepest context.

    >>> longest_sequence(64, [128, 512], 32)
    544
    """
    return max(prompt_tokens, *contexts, 0) + decode_tokens


@dataclass(frozen=True)
class BenchConditions:
    """The conditions under which all figures of a document are measured.

    Attributes:
        threads: threads of every runtime.
        prompt_tokens, decode_tokens: tokens of the prompt, and tokens decoded in a round.
        rounds: rounds that count.
        windows: token ids for perplexity, one list a window; empty: perplexity is not measured.
        text_sha256: hash of the text of `windows`.
        contexts: further depths, in tokens, at which decoding is measured.
        max_rounds: most rounds while a verdict is open; None: no rounds are added.
        instructions: count instructions, which may take a minute.
        chat: instructions that a chat asks; 0: no chat.
        kv: type of the KV cache; None: each runtime's own.
        ubatch: tokens of a prompt that are computed at once; None: each runtime's own number.
        fresh: every round has processes of its own, as two builds of a runtime need: equal processes of one build may
            differ from beginning to end, by where their memory came to lie.
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
    chat: int = 0
    kv: str | None = None
    ubatch: int | None = None
    fresh: bool = False

    @property
    def options(self) -> EngineOptions:
        """What every runtime is asked for as it opens an artifact."""
        return EngineOptions(kv=self.kv, ubatch=self.ubatch)

    @property
    def looks(self) -> tuple[int, ...]:
        """After how many rounds a verdict may be reached."""
        return planned_looks(self.rounds, self.max_rounds or self.rounds)

    @property
    def context(self) -> int:
        """Tokens that the KV cache has to hold."""
        return max([self.prompt_tokens + self.decode_tokens, *map(len, self.windows)])

    def as_dict(self) -> dict[str, Any]:
        """The conditions as JSON. Of the windows, only their number of predicted tokens is kept."""
        return {
            "threads": self.threads,
            "prompt_tokens": self.prompt_tokens,
            "decode_tokens": self.decode_tokens,
            "rounds": self.rounds,
            "looks": list(self.looks),
            "confidence": look_confidence(len(self.looks)),
            "versions": versions(),
            "contexts": list(self.contexts),
            "kv": self.kv,
            "ubatch": self.ubatch,
            "fresh_processes": self.fresh,
            "perplexity_window": len(self.windows[0]) if self.windows else 0,
            "perplexity_tokens": sum(len(window) - 1 for window in self.windows),
            "perplexity_text_sha256": self.text_sha256,
        }
