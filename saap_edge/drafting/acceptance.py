"""How much of a parent's own text a draft knows beforehand, with intervals: what other prompts would have given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from saap_edge.documents.draft import Interval
from saap_edge.drafting.speed import passes

__all__ = ["Answer", "Sample", "sample_of"]

DRAWS, SEED = 2000, 0
ENDS = (2.5, 97.5)  # percentiles: an interval of 95 %


@dataclass(frozen=True)
class Answer:
    """The parent's greedy answer to a prompt, and what the draft knew of it.

    Attributes:
        id, kind: of the prompt.
        prompt: token ids of the prompt.
        ids: token ids of the answer. The first comes from reading the prompt, and is never drafted.
        known: for each further token, whether the draft would have said it after the parent's own tokens.
    """

    id: str
    kind: str
    prompt: list[int]
    ids: list[int]
    known: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Sample:
    """Sums over prompts, the first row those of the prompts as they are, the others those of drawn ones.

    Attributes:
        kept, positions: accepted tokens, and tokens that were to be drafted, [1 + DRAWS].
        passes: their number, by draft length from 1 on, [1 + DRAWS, longest].
    """

    kept: np.ndarray
    positions: np.ndarray
    passes: np.ndarray

    def share(self) -> Interval:
        """Share of accepted tokens."""
        return _interval(self.kept / self.positions)

    def tokens_per_pass(self, gamma: int) -> Interval:
        """Tokens that a pass gives at a draft length."""
        return _interval(self.positions / self.passes[:, gamma - 1])


def sample_of(answers: Sequence[Answer], longest: int) -> Sample:
    """Bootstrap over prompts: of each kind as many are drawn, with repetition, as there are."""
    dice = np.random.default_rng(SEED)
    total = np.zeros((1 + DRAWS, 2 + longest))
    for kind in dict.fromkeys(answer.kind for answer in answers):
        rows = np.array([
            [sum(each.known), len(each.known), *(passes(each.known, gamma) for gamma in range(1, longest + 1))]
            for each in answers if each.kind == kind
        ], dtype=np.float64)  # fmt: skip
        drawn = dice.integers(len(rows), size=(DRAWS, len(rows)))
        total += np.concatenate([rows.sum(axis=0, keepdims=True), rows[drawn].sum(axis=1)])
    return Sample(total[:, 0], total[:, 1], total[:, 2:])


def _interval(values: np.ndarray) -> Interval:
    low, high = np.percentile(values[1:], ENDS)
    return Interval(value=float(values[0]), low=float(low), high=float(high))
