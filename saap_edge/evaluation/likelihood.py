"""Log-likelihoods of token sequences, by one protocol for torch models and for artifacts in their engines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from saap_edge.engines.options import AS_IT_IS, EngineOptions
from saap_edge.engines.worker import Worker
from saap_edge.errors import SaapError
from saap_edge.model.perplexity import Perplexity

__all__ = ["ArtifactScorer", "Request", "Score", "Scorer", "TorchScorer", "finite_scores", "window_perplexity"]

# Tokens of one forward pass in torch, padding included: they keep a CPU busy and fit into any memory.
BATCH_TOKENS = 4096
# Requests sent to the child process at once: a slow board, too, answers them within the worker's time limit.
ASK = 8


class Request(NamedTuple):
    """Token ids. Those from `start` (at least 1) on are scored, each given all tokens before it."""

    tokens: list[int]
    start: int


class Score(NamedTuple):
    """For every scored token: its log-probability in nats, and whether no token is likelier."""

    values: list[float]
    greedy: list[bool]


class Scorer(Protocol):
    """Gives log-probabilities. `context` is the longest sequence that the model can run, in tokens."""

    context: int

    @property
    def vocab_size(self) -> int | None:
        """Number of token ids; None where the file does not say."""

    def score(self, requests: list[Request], advance: Callable[[int], None]) -> list[Score]:
        """Scores in the order of `requests`; `advance` gets the number just done. Raises SaapError on failure.

        A request may have one token more than `context`, because its last token is predicted and not run.
        """
        ...


@dataclass
class TorchScorer:
    """A transformers causal LM, run on its device in batches of similar lengths, padded on the right.

    Choices that share a question are separate rows of a batch: no cache is shared between them.
    """

    model: Any
    context: int

    @property
    def vocab_size(self) -> int | None:
        """Rows of the embedding."""
        return int(self.model.get_input_embeddings().num_embeddings)

    @torch.no_grad()
    def score(self, requests: list[Request], advance: Callable[[int], None]) -> list[Score]:
        scores: dict[int, Score] = {}
        # Longest first, so that a lack of memory shows at once.
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i].tokens))
        for indices in _batches(order, requests):
            batch = [requests[i] for i in indices]
            scores |= zip(indices, self._score(batch), strict=True)
            advance(len(batch))
        return [scores[i] for i in range(len(requests))]

    def _score(self, batch: list[Request]) -> Iterator[Score]:
        width = max(len(request.tokens) for request in batch) - 1
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        for row, request in zip(ids, batch, strict=True):
            row[: len(request.tokens) - 1] = torch.tensor(request.tokens[:-1])
        # No mask is needed: padding comes after every real token, and attention only looks back. Logits are computed
        # from the first wanted position on, because all of a batch with a large vocabulary would take gigabytes.
        first = min(request.start for request in batch) - 1
        keep = torch.arange(first, width, device=self.model.device)
        logits = self.model(input_ids=ids.to(self.model.device), use_cache=False, logits_to_keep=keep).logits
        for row, request in zip(logits, batch, strict=True):
            wanted = torch.tensor(request.tokens[request.start :], device=row.device)
            begin = request.start - 1 - first
            rows = row[begin : begin + len(wanted)].float()
            values = torch.log_softmax(rows, dim=-1).gather(1, wanted[:, None])[:, 0]
            yield Score(values.tolist(), (rows.argmax(dim=-1) == wanted).tolist())


def _batches(order: list[int], requests: list[Request]) -> Iterator[list[int]]:
    """Batches of `order`, longest request first, of at most BATCH_TOKENS padded tokens, or of one request."""
    start = 0
    while start < len(order):
        count = max(1, BATCH_TOKENS // len(requests[order[start]].tokens))
        yield order[start : start + count]
        start += count


@dataclass
class ArtifactScorer:
    """A GGUF file or an ONNX folder, in a child process that lives only while it scores.

    Its KV cache is as long as the longest request, not as long as the model allows. The beginning that consecutive
    requests share (a question before its choices) runs once.
    """

    engine: str
    path: Path
    threads: int
    context: int
    vocab_size: int | None = None
    options: EngineOptions = AS_IT_IS

    def score(self, requests: list[Request], advance: Callable[[int], None]) -> list[Score]:
        longest = max((len(request.tokens) - 1 for request in requests), default=1)
        scores: list[Score] = []
        with Worker(self.engine, self.path, self.threads, longest, self.options) as worker:
            for start in range(0, len(requests), ASK):
                part = requests[start : start + ASK]
                scores += [Score(*answer) for answer in worker.score([(r.tokens, r.start) for r in part])]
                advance(len(part))
        return scores


def finite_scores(scorer: Scorer, requests: list[Request], advance: Callable[[int], None]) -> list[Score]:
    """`scorer.score`. Raises SaapError when a log-probability is not finite, which a mean could hide."""
    scores = scorer.score(requests, advance)
    if not all(math.isfinite(value) for score in scores for value in score.values):
        raise SaapError("the model answers with numbers that are not finite: its weights are damaged")
    return scores


def window_perplexity(scorer: Scorer, windows: torch.Tensor, advance: Callable[[int], None]) -> Perplexity:
    """Next-token perplexity over `windows` [n, window]; the first token of a window is context only.

    Raises SaapError as `finite_scores`.
    """
    scores = finite_scores(scorer, [Request(window, 1) for window in windows.tolist()], advance)
    count = windows.shape[0] * (windows.shape[1] - 1)
    return Perplexity(nll=-sum(sum(score.values) for score in scores) / count, tokens=count, window=windows.shape[1])
