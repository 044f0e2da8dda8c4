"""What every engine can do. An engine runs an artifact, and holds one sequence with its KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

__all__ = ["ArtifactCost", "Engine"]


@dataclass(frozen=True)
class ArtifactCost:
    """What running an artifact costs on any machine.

    Attributes:
        format: its format, as "gguf-q4_0".
        projection_bytes: weights that decoding one token reads, bytes.
        kv_bytes_per_token: keys and values of one token, bytes.
        file_bytes: size of the artifact, bytes.
        parameters: parameters of the model.
        context: tokens of the longest sequence; None: the artifact does not say.
        kv_elements: numbers that a token adds to the KV cache; 0: not told.
        head_dims: sizes of its heads.
        kv: type of the KV cache that was asked for; None: the runtime's own.
        batch_bytes: work space of a token of a prompt, of those that are computed at once, bytes; 0: not told.
        state_bytes: what the runtime remembers of a text of any length, beside keys and values, bytes.
        prepared: it also holds what the runtime packs, for one machine (onnx_prepared.py).
    """

    format: str
    projection_bytes: int
    kv_bytes_per_token: int
    file_bytes: int
    parameters: int
    context: int | None = None
    kv_elements: int = 0
    head_dims: tuple[int, ...] = ()
    kv: str | None = None
    batch_bytes: int = 0
    prepared: bool = False
    state_bytes: int = 0


class Engine(Protocol):
    """One loaded artifact, one sequence.

    It is constructed with `(path, threads, context)`: what it opens, its threads, and how many tokens its KV cache must
    hold; and by name with what its record offers (`EngineRecord.kv_types`) and a user asks for. A class may have a
    static method `import_runtime`, whose imports do not count as load time.
    """

    name: str
    vocab_size: int

    def __init__(self, path: Path, threads: int, context: int) -> None: ...

    def reset(self) -> None:
        """Forget the sequence; the KV cache is empty again."""

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens. Raises ValueError when the sequence is shorter."""

    def forward(self, tokens: Sequence[int], all_logits: bool = False) -> np.ndarray:
        """Append `tokens` to the sequence and return logits float32: [len(tokens), vocab], or [1, vocab] of the last.

        Many tokens are prefill, one token is a decode step. The array may be reused by the next call.
        Raises ValueError when the sequence would outgrow `context`.
        """
        ...

    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache that one token takes in this engine."""
        ...
