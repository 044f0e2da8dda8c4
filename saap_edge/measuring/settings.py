"""Settings of measuring (recipe: bench)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from saap_edge.engines.options import KvName
from saap_edge.settings import Section

__all__ = ["BenchSettings"]


class BenchSettings(Section):
    """How to measure. Every artifact is timed by turns with the dense one of its format, in random order."""

    threads: int | None = Field(default=None, ge=1, description="threads; the target's where absent")
    prompt_tokens: int = Field(default=64, ge=1)
    decode_tokens: int = Field(default=32, ge=1)
    rounds: int = Field(
        default=7, ge=3, description="rounds that count; each times every artifact once, in random order"
    )
    max_rounds: int | None = Field(
        default=None, description="rounds at most, added while noise leaves a limit of the budget undecided"
    )
    perplexity_windows: int = Field(default=16, ge=1, description="windows of test text run through each artifact")
    chat: int = Field(
        default=0, ge=0, le=80, description="instructions to ask, of 80, whose answers are checked; 0: no chat"
    )
    kv: KvName | None = Field(
        default=None,
        description="type of keys and values in the cache of llama.cpp: f16, q8_0 or q4_0; each runtime's own where "
        "absent",
    )
    ubatch: int | None = Field(
        default=None,
        ge=1,
        description="tokens of a prompt that are computed at once; 512 in llama.cpp and 128 in ONNX Runtime where "
        "absent",
    )
    contexts: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(), description="depths in tokens, as [128, 512, 2048]: decoding and memory are measured there too"
    )

    @model_validator(mode="after")
    def _more(self) -> BenchSettings:
        if self.max_rounds is not None and self.max_rounds < self.rounds:
            raise ValueError(f"max_rounds {self.max_rounds} is less than rounds {self.rounds}")
        return self
