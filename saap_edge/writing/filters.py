"""Which documents are fit to learn from: pure functions of token ids.

Small models fall into loops, and say the same thing again in another document. Both would count one piece of text many
times.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["LEAST", "LOOPING", "RUN", "SHARED", "Seen", "repetition", "runs_of"]

LEAST = 16  # tokens that the model wrote; what is shorter says nothing
GRAM = 4  # tokens of a piece whose return counts as repetition
LOOPING = 0.3  # share of such pieces that were in the document before, at most
RUN = 13  # tokens in a row that do not come twice by chance
SHARED = 0.1  # share of a document's runs that earlier documents may have


def repetition(ids: Sequence[int], gram: int = GRAM) -> float:
    """Share of the pieces of `gram` tokens that were in the text before, 0 to 1; 0 for a text of one piece or none.

    >>> repetition([1, 2, 3, 4, 5, 6]), repetition([1, 2] * 20)
    (0.0, 0.9459459459459459)
    """
    pieces = [tuple(ids[start : start + gram]) for start in range(len(ids) - gram + 1)]
    return 1 - len(set(pieces)) / len(pieces) if pieces else 0.0


def runs_of(ids: Sequence[int], run: int = RUN) -> set[tuple[int, ...]]:
    """All runs of `run` tokens in a text; a shorter text is one run.

    >>> sorted(runs_of([1, 2, 3, 4], run=3)), runs_of([1, 2], run=3)
    ([(1, 2, 3), (2, 3, 4)], {(1, 2)})
    """
    return {tuple(ids[start : start + run]) for start in range(max(1, len(ids) - run + 1))}


class Seen:
    """The documents that were kept. It says of a further one why it is dropped.

    >>> seen, text = Seen(), list(range(40))
    >>> seen.refusal(text), seen.refusal(text), seen.refusal(text[:35] + [0, 0]), seen.refusal([7] * 40)
    (None, 'duplicate', 'near duplicate', 'repetition')
    """

    def __init__(self) -> None:
        self._texts, self._runs = set[tuple[int, ...]](), set[int]()

    def refusal(self, ids: Sequence[int]) -> str | None:
        """Why a document of these tokens is dropped: "short", "repetition", "duplicate" or "near duplicate".

        None: it is kept, and later ones are compared with it.
        """
        if len(ids) < LEAST:
            return "short"
        if repetition(ids) > LOOPING:
            return "repetition"
        if tuple(ids) in self._texts:
            return "duplicate"
        runs = {hash(run) for run in runs_of(ids)}  # of tuples of numbers, which Python hashes alike in every process
        if len(runs & self._runs) > SHARED * len(runs):
            return "near duplicate"
        self._texts.add(tuple(ids))
        self._runs |= runs
        return None
