"""The Pareto front: what nothing else beats."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["on_front"]


def on_front(gains: Sequence[float], losses: Sequence[float | None]) -> list[bool]:
    """For each artifact, whether no other is at least as good in gain and loss and better in one.

    `gains` (speed, or minus bytes): more is better; `losses` (perplexity): less is better. An artifact without a loss
    does not compete: what was not measured proves nothing.
    """
    known = [(gain, loss) for gain, loss in zip(gains, losses, strict=True) if loss is not None]

    def beaten(gain: float, loss: float) -> bool:
        return any(other != (gain, loss) and other[0] >= gain and other[1] <= loss for other in known)

    return [loss is not None and not beaten(gain, loss) for gain, loss in zip(gains, losses, strict=True)]
