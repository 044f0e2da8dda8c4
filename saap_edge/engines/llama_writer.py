"""llama.cpp writing many documents side by side: one product of matrices serves the next token of all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from saap_edge.engines.lazy import lazy_import
from saap_edge.engines.llama_cpp import LlamaCppEngine
from saap_edge.errors import SaapError

__all__ = ["KV_BYTES", "SLOTS", "LlamaCppWriter", "sample", "slots_of"]

llama_cpp = lazy_import("llama_cpp")

SLOTS = 32  # documents at a time: 64 are hardly faster, and take twice the KV cache
KV_BYTES = 1 << 30  # of all documents together, at most
LEAST_SLOTS = 2
ROOM = 512  # tokens that are run at once


def slots_of(context: int, kv_bytes_per_token: int) -> int:
    """How many documents of `context` tokens are written at a time.

    >>> slots_of(768, 23_040), slots_of(768, 200_000)
    (32, 6)
    """
    return max(LEAST_SLOTS, min(SLOTS, KV_BYTES // (context * kv_bytes_per_token)))


def sample(logits: np.ndarray, temperatures: Sequence[float], least: float, draws: Sequence[float]) -> list[int]:
    """A token of every row of `logits` [n, vocab], drawn from the softmax at the row's temperature.

    Tokens with less than `least` times the probability of the likeliest are left out: the tail of small models is
    noise. `draws` are uniform in [0, 1), one a row. Raises SaapError for logits that are not finite, but for -inf.

    >>> rows = np.log(np.array([[0.5, 0.3, 0.2], [0.98, 0.01, 0.01]], np.float32))
    >>> sample(rows, [1.0, 1.0], 0.02, [0.6, 0.99])
    [1, 0]
    """
    scaled = logits / np.asarray(temperatures, np.float32)[:, None]
    scaled -= scaled.max(axis=1, keepdims=True)
    weights = np.exp(scaled)
    weights[weights < least] = 0
    sums = np.cumsum(weights, axis=1)
    if not np.isfinite(sums[:, -1]).all():
        raise SaapError("the model's logits are not finite")
    return [
        int(np.searchsorted(row, draw * float(row[-1]), side="right")) for row, draw in zip(sums, draws, strict=True)
    ]


@dataclass
class _Document:
    """A document that is being written. `parts` are pairs of tokens that are given and a limit of what follows."""

    number: int
    parts: list[tuple[list[int], int]]
    temperature: float
    random: np.random.Generator
    waiting: list[int]  # tokens that have not been run
    length: int = 0  # tokens that have
    written: list[list[int]] = field(default_factory=lambda: [[]])
    ended: bool = False

    def take(self, token: int, ends: set[int]) -> bool:
        """Take the next token; whether the document is done."""
        part = len(self.written) - 1
        if token not in ends:
            self.written[-1].append(token)
            self.waiting = [token]
            return len(self.written[-1]) >= self.parts[part][1]
        if part + 1 == len(self.parts):
            self.ended = True
            return True
        self.written.append([])
        self.waiting = list(self.parts[part + 1][0])
        return False


class LlamaCppWriter(LlamaCppEngine):
    """A GGUF file in llama.cpp that writes documents of at most `context` tokens, `slots` at a time.

    Every document has a sequence of its own in the KV cache, and random numbers of its own.
    """

    def __init__(self, path: Path, threads: int, context: int) -> None:
        """Load `path`. Raises SaapError as `LlamaCppEngine`."""
        super().__init__(path, threads, context)
        self._batch = llama_cpp.llama_batch_init(ROOM, 0, 1)

    def _parameters(self) -> Any:
        parameters = super()._parameters()
        self.slots = slots_of(self.context, self.kv_bytes_per_token())
        parameters.n_seq_max, parameters.n_ctx = self.slots, self.slots * self.context
        parameters.n_batch = parameters.n_ubatch = ROOM
        # One KV cache for all would have every document look over the keys of the others.
        parameters.kv_unified = False
        return parameters

    def begin(self, documents: list[dict[str, Any]], ends: list[int], banned: list[int], least: float) -> None:
        """Forget all documents and take these in hand.

        Args:
            documents: of each, "number", "seed" (a list of numbers), "temperature", and "parts": pairs of given token
                ids and the most tokens that the model writes after them. The next part begins where the model ends one.
            ends: token ids that end a part.
            banned: token ids that are never chosen.
            least: as in `sample`.
        """
        self.reset()
        self._ends, self._banned, self._least = set(ends), np.array(banned, np.int64), least
        self._queue = deque(
            _Document(
                each["number"], [(list(given), limit) for given, limit in each["parts"]], each["temperature"],
                np.random.default_rng(each["seed"]), list(each["parts"][0][0]),
            )
            for each in documents
        )  # fmt: skip
        self._running: list[_Document | None] = [None] * self.slots

    def proceed(self, steps: int) -> dict[str, Any]:
        """Write on, `steps` tokens of every document in hand.

        Returns {"tokens": how many were written, "done": [[number, [tokens of every part], ended], ...], "left": number
        of documents that are not done}. A document that is not `ended` met the limit of its last part.
        """
        done: list[list[Any]] = []
        tokens = 0
        for _ in range(steps):
            self._fill_slots()
            if not any(self._running):
                break
            due = self._run()
            if due:
                tokens += len(due)
                done += self._choose(due)
        return {"tokens": tokens, "done": done, "left": len(self._queue) + sum(map(bool, self._running))}

    def _fill_slots(self) -> None:
        for slot, document in enumerate(self._running):
            if document is None and self._queue:
                self._running[slot] = self._queue.popleft()

    def _run(self) -> list[int]:
        """Run what waits, as far as there is room. Returns the slots whose next token can be chosen, in their order."""
        batch, count, due = self._batch, 0, []
        for slot, document in enumerate(self._running):
            if document is None or count == ROOM:
                continue
            taken = document.waiting[: ROOM - count]
            document.waiting = document.waiting[len(taken) :]
            for index, token in enumerate(taken):
                batch.token[count], batch.pos[count] = token, document.length + index
                batch.n_seq_id[count], batch.seq_id[count][0] = 1, slot
                batch.logits[count] = not document.waiting and index == len(taken) - 1
                count += 1
            document.length += len(taken)
            due += [slot] if not document.waiting else []
        batch.n_tokens = count
        status = llama_cpp.llama_decode(self._context, batch)
        if status:
            raise SaapError(f"'{self.path}': llama.cpp could not decode {count} tokens (status {status})")
        return due

    def _choose(self, due: list[int]) -> list[list[Any]]:
        """Choose the next token of these slots. Returns the documents that are done."""
        shape = (len(due), self.vocab_size)
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self._context), shape=shape)
        logits[:, self._banned] = -np.inf
        documents = [document for slot in due if (document := self._running[slot])]
        temperatures = [document.temperature for document in documents]
        chosen = sample(logits, temperatures, self._least, [document.random.random() for document in documents])
        done = []
        for slot, document, token in zip(due, documents, chosen, strict=True):
            if document.take(token, self._ends):
                done.append([document.number, document.written, document.ended])
                llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self._context), slot, -1, -1)
                self._running[slot] = None
        return done
