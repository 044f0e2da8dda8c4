"""Perplexity of a torch causal LM, with the conditions that make the figure comparable."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saap_edge.model.tokenizer import plain_ids

__all__ = ["Perplexity", "perplexity", "text_hash", "text_windows"]

LOGITS = 1 << 25  # most logits held at a time: 128 MiB in float32, and as much again for their logarithms


@dataclass(frozen=True)
class Perplexity:
    """Perplexity with its conditions.

    `nll` is the mean negative log-likelihood in nats per predicted token, `tokens` the number of predicted tokens,
    `window` the tokens in a window. `by_window` has the mean of each window, where it was kept.

    >>> round(Perplexity(nll=2.302585, tokens=1000, window=256).value, 3)
    10.0
    """

    nll: float
    tokens: int
    window: int
    by_window: tuple[float, ...] = ()

    @property
    def value(self) -> float:
        """exp(nll); infinite where that overflows."""
        return math.exp(self.nll) if self.nll < 700 else math.inf


def text_hash(path: str | Path) -> str:
    """First 12 hex digits of the sha256 of a text file; they stand beside every perplexity."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]


def text_windows(tokenizer: Any, text: str, window: int, limit: int | None = None) -> torch.Tensor:
    """Cut `text` into non-overlapping windows of token ids, shape [n, window].

    The last, incomplete window is dropped. `limit` keeps the first n windows. Raises ValueError when the text does not
    fill one window.
    """
    ids = plain_ids(tokenizer, text)
    count = len(ids) // window
    if limit is not None:
        count = min(count, limit)
    if count == 0:
        raise ValueError(f"the text has {len(ids)} tokens, fewer than one window of {window}")
    return torch.tensor(ids[: count * window], dtype=torch.long).view(count, window)


@torch.no_grad()
def perplexity(model: Any, windows: torch.Tensor, progress: Callable[[int], None] = lambda windows: None) -> Perplexity:
    """Next-token perplexity over `windows` [n, window]; the first token of a window is context only.

    As many windows run together as keep their logits below LOGITS, so that memory does not grow with the vocabulary.
    `progress` is called with the number of windows just done.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    batch = min(8, max(1, LOGITS // (windows.shape[1] * model.config.get_text_config().vocab_size)))
    total, count = 0.0, 0
    for chunk in windows.split(batch):
        chunk = chunk.to(device)
        logits = model(input_ids=chunk, use_cache=False).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), chunk[:, 1:].flatten(), reduction="sum")
        total += float(losses)
        count += chunk[:, 1:].numel()
        progress(len(chunk))
    model.train(was_training)
    return Perplexity(nll=total / count, tokens=count, window=windows.shape[1])
