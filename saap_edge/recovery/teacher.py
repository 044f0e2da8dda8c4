"""Teachers: they give the dense model's distribution of the next token, from the model itself or from a cache.

The cache holds the `top` likeliest tokens of every position. The rest of the distribution is one more class, "any other
token", so that the probability which the student gives to the rest counts. Only writing the cache needs the dense model
in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from saap_edge.model.arithmetic import halved_products
from saap_edge.model.attention import short_attention
from saap_edge.model.head import logits_of, multiplied_logits, pieces

__all__ = ["CachedTeacher", "DenseTeacher", "Divergence", "Teacher", "cached_teacher", "write_cache"]

LEAST = 1e-5  # probability of all tokens beyond those that are known
# (logits [rows, vocab] of the student, slice of the batch's rows) -> sum over rows of KL(teacher || student), in nats.
Divergence = Callable[[torch.Tensor, slice], torch.Tensor]


class Teacher(Protocol):
    """Gives the divergence of a batch. Its rows are the positions that have a next token, sequence after sequence."""

    def __call__(self, ids: torch.Tensor, windows: torch.Tensor) -> Divergence:
        """The divergence for token ids [batch, window]; `windows` [batch] are their numbers in the training windows."""
        ...


class _Divergence(torch.autograd.Function):
    """KL(teacher || student) in nats, summed over rows, from logits [rows, vocab] of the student and teacher.

    torch's own kl_div takes eight passes over arrays of that size, and as many again for the gradient. This is
    q - p, for distributions q of the student and p of the teacher, and is at hand when the loss is computed. It is
    computed in float32, some rows at a time, which stay in the processor's cache.
    """

    @staticmethod
    def forward(context: Any, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        value, gradient = student.new_zeros((), dtype=torch.float32), torch.empty_like(student)
        for rows in pieces(student):
            mine, theirs = (logits[rows].float().log_softmax(-1) for logits in (student, teacher))
            share = theirs.exp()
            value += theirs.sub_(mine).mul_(share).sum()
            torch.sub(mine.exp_(), share, out=gradient[rows])
        context.gradient = gradient
        return value

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return context.gradient.mul_(gradient), None


class _Known:
    """What a model's last layer gave for training windows: later rounds over the same text need no pass.

    It takes at most as much memory as the model's weights; windows beyond that are not kept.
    """

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self._room = sum(weight.nbytes for weight in model.parameters())
        self._dtype, self._states = dtype, dict[int, torch.Tensor]()

    def read(self, windows: list[int]) -> torch.Tensor | None:
        """The states [batch, window - 1, hidden] of windows, by their numbers; None unless all of them are known."""
        known = [self._states[number] for number in windows if number in self._states]
        return torch.stack(known) if len(known) == len(windows) else None

    def write(self, windows: list[int], states: torch.Tensor) -> None:
        for number, found in zip(windows, states, strict=True):
            size = found.numel() * self._dtype.itemsize
            if number not in self._states and size <= self._room:
                self._states[number] = found.to("cpu", self._dtype, copy=True)
                self._room -= size


class DenseTeacher:
    """The dense model itself: exact, but its weights stay in memory and every batch takes a forward pass.

    `again`: the same windows come again. What the last layer gave is kept, which takes no more memory than the weights.

    `halved`: it is asked under mixed precision only. Its matrices are then kept in bfloat16, as products would round
    them every time, which changes no answer and takes half the memory.
    """

    def __init__(self, model: Any, halved: bool = False, again: bool = False) -> None:
        self.model = halved_products(model) if halved else model
        # Products would round the states to bfloat16 too.
        self._known = _Known(self.model, torch.bfloat16 if halved else torch.float32) if again else None

    def __call__(self, ids: torch.Tensor, windows: torch.Tensor) -> Divergence:
        model, states = self.model.to(ids.device), self._last_states(ids, windows.tolist()).flatten(0, 1)

        def divergence(logits: torch.Tensor, rows: slice) -> torch.Tensor:
            with torch.no_grad():
                target = multiplied_logits(model, states[rows])
            value: torch.Tensor = _Divergence.apply(logits, target)  # type: ignore[no-untyped-call]
            return value

        return divergence

    @torch.no_grad()
    def _last_states(self, ids: torch.Tensor, windows: list[int]) -> torch.Tensor:
        """What the last layer gives for every token but the last: [batch, window - 1, hidden]."""
        known = self._known.read(windows) if self._known else None
        if known is not None:
            return known.to(ids.device)
        with short_attention(self.model):
            states: torch.Tensor = self.model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        if self._known:
            self._known.write(windows, states)
        return states


@torch.no_grad()
def write_cache(
    model: Any, windows: torch.Tensor, top: int, path: Path, progress: Callable[[], None] = lambda: None
) -> None:
    """Write the `top` likeliest next tokens of every position of `windows` [n, window], with their log-probabilities.

    The file holds `tokens` int32 and `logs` float16, both [n, window - 1, top]: 6 bytes per token and position.
    `progress` is called after each window.
    """
    top = min(top, model.config.get_text_config().vocab_size)
    shape = (len(windows), windows.shape[1] - 1, top)
    tokens, logs = torch.empty(shape, dtype=torch.int32), torch.empty(shape, dtype=torch.float16)
    device = next(model.parameters()).device
    for index, window in enumerate(windows):
        with short_attention(model):
            states = model.model(input_ids=window[None].to(device), use_cache=False).last_hidden_state[0, :-1]
        found = logits_of(model, states).log_softmax(-1).topk(top)
        tokens[index], logs[index] = found.indices.int().cpu(), found.values.half().cpu()
        progress()
    partial = path.with_suffix(".partial")
    save_file({"tokens": tokens, "logs": logs}, partial)
    partial.rename(path)


def cached_teacher(
    dense: Callable[[], Any], windows: torch.Tensor, top: int, path: Path, progress: Callable[[], None] = lambda: None
) -> CachedTeacher:
    """The teacher whose answers are in the file `path`; where it is missing the model that `dense` loads writes it."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_cache(dense(), windows, top, path, progress)
    return CachedTeacher(path)


class CachedTeacher:
    """Reads what `write_cache` wrote, a batch at a time."""

    def __init__(self, path: Path) -> None:
        self._file = safe_open(str(path), framework="pt")

    def __call__(self, ids: torch.Tensor, windows: torch.Tensor) -> Divergence:
        def read(name: str, dtype: torch.dtype) -> torch.Tensor:
            stored: Any = self._file.get_slice(name)  # type: ignore[no-untyped-call]  # cast before joining: autocast on CPUs joins no float16
            return torch.cat([stored[int(i)].to(dtype) for i in windows]).to(ids.device)

        tokens, target = read("tokens", torch.long), read("logs", torch.float32)

        def divergence(logits: torch.Tensor, rows: slice) -> torch.Tensor:
            value: torch.Tensor = _TopDivergence.apply(logits, tokens[rows], target[rows])  # type: ignore[no-untyped-call]
            return value

        return divergence


class _TopDivergence(torch.autograd.Function):
    """The same from the teacher's likeliest `tokens` [rows, top] and their log-probabilities `logs`.

    With p and q the probabilities of the teacher and the student, P and Q their sums over these tokens and r the
    teacher's rest, the gradient is q (P - r Q / (1 - Q)), and on these tokens q r / (1 - Q) - p beside it.
    """

    @staticmethod
    def forward(context: Any, student: torch.Tensor, tokens: torch.Tensor, logs: torch.Tensor) -> torch.Tensor:
        value = student.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(student) if context.needs_input_grad[0] else None
        for rows in pieces(student):
            named, theirs = tokens[rows], logs[rows]
            all_mine = student[rows].float().log_softmax(-1)
            mine, share, rest = all_mine.gather(1, named), theirs.exp(), _rest(theirs)
            my_rest = _rest(mine)
            value += (share * (theirs - mine)).sum() + (rest * (rest.log() - my_rest.log())).sum()
            if gradient is not None:
                pull, inside = torch.where(my_rest > LEAST, rest / my_rest, 0), mine.exp()
                found = all_mine.exp_().mul_((share.sum(-1) - pull * inside.sum(-1))[:, None])
                gradient[rows] = found.scatter_add_(1, named, pull[:, None] * inside - share)
        context.gradient = gradient
        return value

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return context.gradient.mul_(gradient), None, None


def _rest(logs: torch.Tensor) -> torch.Tensor:
    """Probability of all other tokens, at least LEAST: the float16 probabilities may add up to 1 or more."""
    return (1 - logs.exp().sum(-1)).clamp_min(LEAST)
