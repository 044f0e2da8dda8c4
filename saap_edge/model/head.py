"""Losses over a model's vocabulary without holding all logits: loss and gradient are computed some rows at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from saap_edge.model.perplexity import Perplexity

__all__ = [
    "LOGITS",
    "head_gradient",
    "logits_of",
    "multiplied_logits",
    "next_token_gradient",
    "pieces",
    "states_perplexity",
]

LOGITS = 1 << 24  # logits held at a time: 64 MiB in float32, thrice that with their gradient
CACHED = 1 << 18  # logits that are worked on at a time: 1 MiB in float32, which stays in the processor's cache


def pieces(logits: torch.Tensor) -> Iterator[slice]:
    """Slices of the rows of logits [rows, vocab] that stay in the processor's cache; on a GPU as many as are held.

    >>> list(pieces(torch.empty(3, CACHED // 2)))
    [slice(0, 2, None), slice(2, 3, None)]
    """
    step = max(1, (CACHED if logits.device.type == "cpu" else LOGITS) // logits.shape[-1])
    return (slice(first, min(first + step, len(logits))) for first in range(0, len(logits), step))


def logits_of(model: Any, states: torch.Tensor) -> torch.Tensor:
    """Float32 logits [rows, vocab] of the decoder's output `states` [rows, hidden], with the family's soft cap."""
    return multiplied_logits(model, states).float()


def multiplied_logits(model: Any, states: torch.Tensor) -> torch.Tensor:
    """The same, in the precision in which products are taken."""
    logits: torch.Tensor = model.lm_head(states)
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits


def head_gradient(
    model: Any, states: torch.Tensor, loss: Callable[[torch.Tensor, slice], torch.Tensor], gradient: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean over rows of a loss of logits, and its gradient with respect to `states` (zeros if not wanted).

    The head's own weights get no gradient. So each piece's gradient is taken right after its loss, and its graph is
    freed. The result is exact, and takes no more passes than a plain backward.

    Args:
        states: output of the decoder, [rows, hidden], detached.
        loss: (logits [some rows, vocab], the slice of these rows) -> sum of the loss over these rows. Logits have the
            precision of products.
        gradient: compute the gradient too.
    """
    step, total = max(1, LOGITS // model.config.get_text_config().vocab_size), states.new_zeros((), dtype=torch.float32)
    found = torch.zeros_like(states)
    for first in range(0, len(states), step):
        rows = slice(first, min(first + step, len(states)))
        piece = states[rows].detach().clone().requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            value = loss(multiplied_logits(model, piece), rows) / len(states)
        if gradient:
            found[rows] = torch.autograd.grad(value, piece)[0]
        total += value.detach().to(total.device)
    return total, found


def next_token_gradient(model: Any, states: torch.Tensor, tokens: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Mean loss of next tokens, in nats, and its gradient with respect to `states`.

    Args:
        states: output of the decoder, [sequences, window, hidden], detached.
        tokens: token ids [sequences, window].
    """
    value, found = head_gradient(model, states[:, :-1].flatten(0, 1), _next_token_loss(tokens[:, 1:].flatten()))
    gradient = torch.zeros_like(states)
    gradient[:, :-1] = found.reshape_as(gradient[:, :-1])
    return float(value), gradient


@torch.no_grad()
def states_perplexity(model: Any, states: list[torch.Tensor], windows: torch.Tensor) -> Perplexity:
    """Next-token perplexity over `windows` [n, window], from what the last layer gives for them.

    `states`: [some windows, window, hidden or more] a chunk, in order, before the model's last norm. The first token of
    a window is context only.
    """
    step, done, found = max(1, LOGITS // model.config.get_text_config().vocab_size), 0, []
    for chunk in states:
        inner = chunk[:, :-1, : model.config.get_text_config().hidden_size]
        rows, wanted = model.model.norm(inner).flatten(0, 1), windows[done : done + len(chunk), 1:].flatten()
        pieces = zip(rows.split(step), wanted.to(rows.device).split(step), strict=True)
        losses = [cross_entropy(logits_of(model, piece), tokens, reduction="none") for piece, tokens in pieces]
        found += torch.cat(losses).view(len(chunk), -1).double().mean(1).tolist()
        done += len(chunk)
    nll = math.fsum(found) / len(found)
    return Perplexity(nll, windows[:, 1:].numel(), windows.shape[1], tuple(found))


def _next_token_loss(wanted: torch.Tensor) -> Callable[[torch.Tensor, slice], torch.Tensor]:
    """What `head_gradient` takes: the loss of the tokens `wanted` [rows], which come next."""

    def loss(logits: torch.Tensor, rows: slice) -> torch.Tensor:
        return cross_entropy(logits.float(), wanted[rows].to(logits.device), reduction="sum")

    return loss
