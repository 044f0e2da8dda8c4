"""Held-out text with the dense model's answers to it: what decides which weights recovery keeps.

Perplexity alone would be the wrong judge. Text of a style of its own, such as WikiText's, is learnt within some hundred
steps, and the perplexity on it falls below the dense model's, while the student moves away from the dense model
everywhere else. So what is learnt from the dense model is judged by it (docs/recovery.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from saap_edge.model.arithmetic import Precision, multiplied, products
from saap_edge.model.attention import short_attention
from saap_edge.model.head import head_gradient, pieces
from saap_edge.model.perplexity import Perplexity
from saap_edge.recovery.teacher import CachedTeacher, cached_teacher

__all__ = ["TOP", "Found", "Heldout", "with_answers"]

TOGETHER = 4  # windows in a pass: casting weights takes as long for one
TOP = 256  # likeliest tokens of an answer that are kept: 400 kB a window of 256


@dataclass(frozen=True)
class Found:
    """What a model has on held-out text.

    Attributes:
        perplexity: of the text.
        divergence: KL(dense || model) in nats a token, over the dense model's TOP likeliest tokens and "any other" as
            one more; None where there are no answers of the dense model.
    """

    perplexity: Perplexity
    divergence: float | None

    def loss(self, distillation: float) -> float:
        """The loss of training, in nats a token: a share of divergence, the rest next-token cross-entropy.

        >>> Found(Perplexity(nll=3.0, tokens=10, window=11), divergence=1.0).loss(0.75)
        1.5
        """
        if self.divergence is None:
            return self.perplexity.nll
        return distillation * self.divergence + (1 - distillation) * self.perplexity.nll


@dataclass(frozen=True)
class Heldout:
    """Held-out text, and how models are measured on it.

    Attributes:
        windows: token ids [n, window].
        answers: the teacher's answers to them, or None where it is not asked.
        precision: of products. It is that of training, whose evaluations are compared with these figures.
    """

    windows: torch.Tensor
    answers: CachedTeacher | None = None
    precision: Precision = "float32"

    @torch.no_grad()
    def measure(self, model: Any) -> Found:
        """Perplexity and divergence of a transformers causal LM, in one pass."""
        was_training = model.training
        model.eval()
        with products(self.precision), short_attention(model):
            chunks = torch.arange(len(self.windows)).split(TOGETHER)
            sums = sum((self._sums(model, chunk) for chunk in chunks), torch.zeros(2).double())
        model.train(was_training)
        count = self.windows[:, 1:].numel()
        text, apart = (sums / count).tolist()
        return Found(Perplexity(text, count, self.windows.shape[1]), apart if self.answers else None)

    def _sums(self, model: Any, chunk: torch.Tensor) -> torch.Tensor:
        """Sums over the positions of some windows, float64 [2]: loss of the text, and divergence if there are answers.

        `chunk`: the windows' numbers.
        """
        ids = self.windows[chunk].to(next(model.parameters()).device)
        states = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
        divergence, wanted = self.answers(ids, chunk) if self.answers else None, ids[:, 1:].flatten()
        sums = torch.zeros(2, dtype=torch.float64)

        def losses(logits: torch.Tensor, rows: slice) -> torch.Tensor:
            for piece in pieces(logits):
                sums[0] += cross_entropy(logits[piece].float(), wanted[rows][piece], reduction="sum").cpu()
            if divergence:
                sums[1] += divergence(logits, rows).cpu()
            return logits.new_zeros(())

        head_gradient(model, states, losses, gradient=False)
        return sums


def with_answers(
    heldout: Heldout, dense: Callable[[], Any], path: Path, progress: Callable[[], None] = lambda: None
) -> Heldout:
    """The held-out text with the answers of the model that `dense` loads, which are kept in the file `path`.

    `progress` is called after each window.
    """
    answers = multiplied(heldout.precision, cached_teacher)(dense, heldout.windows, TOP, path, progress)
    return replace(heldout, answers=answers)
