"""Log-likelihoods of token sequences: one small protocol, for a torch model and for an artifact in its own engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from saap_edge.engines.worker import Worker
from saap_edge.errors import SaapError
from saap_edge.model.perplexity import Perplexity

__all__ = ["ArtifactScorer", "Request", "Score", "Scorer", "TorchScorer", "finite_scores", "window_perplexity"]

# Tokens of one forward pass in torch, padding included: enough to keep a CPU busy, little enough to fit anywhere.
BATCH_TOKENS = 4096
# Requests of one question to the child process: it answers within the worker's time limit on a slow board too.
ASK = 8


class Request(NamedTuple):
    """Token ids; those from `start` on (at least 1) are to be scored given all before them."""

    tokens: list[int]
    start: int


class Score(NamedTuple):
    """Of every scored token: log-probability in nats, and whether the model finds no token likelier."""

    values: list[float]
    greedy: list[bool]


class Scorer(Protocol):
    """Whatever gives log-probabilities. `context` is the longest sequence the model can be run on."""

    context: int

    @property
    def vocab_size(self) -> int | None:
        """Number of token ids; None where the file does not say."""

    def score(self, requests: list[Request], advance: Callable[[int], None]) -> list[Score]:
        """Scores in the order of `requests`; `advance` is told how many were done. Raises SaapError when it fails.

        A request may have one token more than `context`: its last token is predicted, never run.
        """
        ...


@dataclass
class TorchScorer:
    """A transformers causal LM, on the device it is on; batches of like lengths, padded on the right.

    Choices that share a question are run as rows of one batch: the question is not kept between them.
    """

    model: Any
    context: int

    @property
    def vocab_size(self) -> int | None:
        """Of the embedding."""
        return int(self.model.get_input_embeddings().num_embeddings)

    @torch.no_grad()
    def score(self, requests: list[Request], advance: Callable[[int], None]) -> list[Score]:
        scores: dict[int, Score] = {}
        # Longest first: what does not fit into memory fails at once.
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
        # Padding comes after every real token, and attention only looks back: it needs no mask. Logits are made from
        # the first wanted position on: those of a whole batch with a large vocabulary would take gigabytes.
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
    """Runs of `order`, longest request first, whose padded size stays within BATCH_TOKENS; at least one request."""
    start = 0
    while start < len(order):
        count = max(1, BATCH_TOKENS // len(requests[order[start]].tokens))
        yield order[start : start + count]
        start += count


@dataclass
class ArtifactScorer:
    """A GGUF file or an ONNX folder in a child process, which lives only while it scores.

    Its KV cache is as long as the longest request, not as the model allows. What consecutive requests share (a
    question and its choices) is run once.
    """

    engine: str
    path: Path
    threads: int
    context: int
    vocab_size: int | None = None

    def score(self, requests: list[Request], advance: Callable[[int], None]) -> list[Score]:
        longest = max((len(request.tokens) - 1 for request in requests), default=1)
        scores: list[Score] = []
        with Worker(self.engine, self.path, self.threads, longest) as worker:
            for start in range(0, len(requests), ASK):
                part = requests[start : start + ASK]
                scores += [Score(*answer) for answer in worker.score([(r.tokens, r.start) for r in part])]
                advance(len(part))
        return scores


def finite_scores(scorer: Scorer, requests: list[Request], advance: Callable[[int], None]) -> list[Score]:
    """`scorer.score`, refused with a SaapError when an answer is not a finite number: a mean would hide it."""
    scores = scorer.score(requests, advance)
    if not all(math.isfinite(value) for score in scores for value in score.values):
        raise SaapError("the model answers with numbers that are not finite: its weights are damaged")
    return scores


def window_perplexity(scorer: Scorer, windows: torch.Tensor, advance: Callable[[int], None]) -> Perplexity:
    """Next-token perplexity over `windows` [n, window]; the first token of a window is context only."""
    scores = finite_scores(scorer, [Request(window, 1) for window in windows.tolist()], advance)
    count = windows.shape[0] * (windows.shape[1] - 1)
    return Perplexity(nll=-sum(sum(score.values) for score in scores) / count, tokens=count, window=windows.shape[1])
