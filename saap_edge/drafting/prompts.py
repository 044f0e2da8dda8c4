"""The prompts whose continuations are drafted: a small fixed set by kind. JSON Lines: {"id", "kind", "prompt"}."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CHATS", "KINDS", "MOST", "PROMPTS_FILE", "Prompt", "read_prompts", "sha256_of"]

PROMPTS_FILE = Path(__file__).with_name("prompts.jsonl")
CHATS = "chat"  # the kind that goes through the model's chat template
KINDS = ("text", CHATS, "code")
MOST = 8  # prompts of a kind


@dataclass(frozen=True)
class Prompt:
    """A prompt: its name, its kind, and what it says."""

    id: str
    kind: str
    prompt: str


def read_prompts(each: int) -> list[Prompt]:
    """The first `each` prompts of every kind, in the order of the file, where the kinds take turns.

    >>> [prompt.id for prompt in read_prompts(1)]
    ['text-1', 'chat-1', 'code-1']
    """
    rows = [Prompt(**json.loads(line)) for line in PROMPTS_FILE.read_text(encoding="utf-8").splitlines()]
    return [row for kind in zip(*(_of(rows, kind)[:each] for kind in KINDS), strict=True) for row in kind]


def sha256_of() -> str:
    """sha256 of the file of prompts."""
    return hashlib.sha256(PROMPTS_FILE.read_bytes()).hexdigest()


def _of(rows: list[Prompt], kind: str) -> list[Prompt]:
    return [row for row in rows if row.kind == kind]
