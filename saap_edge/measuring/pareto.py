"""The Pareto front: the artifacts that no other beats."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["on_front"]


def on_front(gains: Sequence[float], losses: Sequence[float | None]) -> list[bool]:
    """For each artifact, whether no other is at least as good in both gain and loss, and better in one.

    More is better for `gains` (speed, or minus bytes), less for `losses` (perplexity). An artifact without a loss was
    not measured, and does not compete.

    >>> on_front(gains=[10, 20, 15, 30], losses=[5.0, 6.0, 7.0, None])
    [True, True, False, False]
    """
    known = [(gain, loss) for gain, loss in zip(gains, losses, strict=True) if loss is not None]

    def beaten(gain: float, loss: float) -> bool:
        return any(other != (gain, loss) and other[0] >= gain and other[1] <= loss for other in known)

    return [loss is not None and not beaten(gain, loss) for gain, loss in zip(gains, losses, strict=True)]
