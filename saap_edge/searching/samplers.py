"""Which of Optuna's samplers chooses points."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

__all__ = ["STARTS", "sampler"]

STARTS = 6  # points by lot before the sampler has anything to go by


def sampler(seed: int) -> BaseSampler:
    """Gaussian processes: of Optuna's samplers the one for few and expensive trials (docs/search.md)."""
    from optuna.samplers import GPSampler

    return GPSampler(seed=seed, n_startup_trials=STARTS, deterministic_objective=True)
