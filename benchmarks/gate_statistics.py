"""How often the gate's intervals miss the truth, by simulation: one look, and several with rounds added between.

    python benchmarks/gate_statistics.py --out benchmarks/results/gate-statistics.json

Two equal artifacts are timed in rounds whose order is drawn by lot, under noise of six kinds. Stated is the share of
runs in which any look's interval of the ratio misses 1, at most 5 % wanted: for the gate's own intervals (order
statistics, each look's error its share of 5 %), for a bootstrap of the median, for the full 95 % at every look, and for
the gate's intervals where the order of a round is always the same. `width` is the median width of the last interval in
percent. About 20 seconds on one core. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from result import publish
from rich.console import Console
from rich.table import Table

from saap_edge.measuring.statistics import CONFIDENCE, look_confidence, order_rank

LOOKS = ((7,), (7, 14, 28), (8, 16, 32, 64))
TRIALS, BOOTSTRAP = 10_000, 300
console = Console(width=120)
Interval = tuple[np.ndarray, np.ndarray]


def noise(kind: str, rng: np.random.Generator, rounds: int) -> np.ndarray:
    """Logarithms of a slowdown at every turn of a run, [TRIALS, 2 * rounds]."""
    shape, turn = (TRIALS, 2 * rounds), np.arange(2 * rounds)
    quiet = rng.normal(0, 0.005, shape)
    if kind == "normal, 2 %":
        return 4 * quiet
    if kind == "heavy tails":
        return 0.01 * rng.standard_t(2, shape)
    if kind == "bursts":
        return quiet + np.where(rng.random(shape) < 0.3, rng.exponential(0.3, shape), 0)
    if kind == "long bursts":  # a state that lasts 5 turns on average
        state = np.zeros(shape, dtype=bool)
        state[:, 0] = rng.random(TRIALS) < 0.3
        for number in turn[1:]:
            changes = rng.random(TRIALS) < np.where(state[:, number - 1], 0.2, 0.09)
            state[:, number] = state[:, number - 1] ^ changes
        return quiet + np.where(state, 0.3, 0)
    if kind == "drift, 30 %":
        return quiet + 0.3 * turn / turn[-1]
    phase, pace = rng.uniform(0, 6.3, (TRIALS, 1)), rng.uniform(0.3, 3.1, (TRIALS, 1))
    return quiet + 0.1 * (np.sin(pace * turn + phase) > 0.3)


KINDS = ("normal, 2 %", "heavy tails", "bursts", "long bursts", "drift, 30 %", "periodic")


def log_ratios(kind: str, rng: np.random.Generator, rounds: int, by_lot: bool) -> np.ndarray:
    """Of every round, [TRIALS, rounds]; the order of a round drawn by lot, or always the same."""
    turns = noise(kind, rng, rounds).reshape(TRIALS, rounds, 2)
    swapped = rng.random((TRIALS, rounds)) < 0.5 if by_lot else np.zeros((TRIALS, rounds), dtype=bool)
    return np.where(swapped, turns[:, :, 1] - turns[:, :, 0], turns[:, :, 0] - turns[:, :, 1])


def between_order_statistics(logs: np.ndarray, confidence: float) -> Interval:
    rank, ordered = order_rank(logs.shape[1], confidence), np.sort(logs, axis=1)
    assert rank, "too few rounds for this confidence"
    return ordered[:, rank - 1], ordered[:, -rank]


def bootstrap(logs: np.ndarray, confidence: float) -> Interval:
    """Percentiles of the medians of resampled rounds, of the first 2,000 runs."""
    rng, logs = np.random.default_rng(0), logs[:2000]
    picks = rng.integers(0, logs.shape[1], (BOOTSTRAP, logs.shape[1]))
    medians = np.stack([np.median(logs[:, pick], axis=1) for pick in picks])
    low, high = np.quantile(medians, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low, high


def missed(
    logs: np.ndarray, looks: tuple[int, ...], interval: Callable[[np.ndarray, float], Interval], confidence: float
) -> tuple[float, float]:
    """(share of runs in which any look misses, median width of the last interval)."""
    wrong: Any = False
    for look in looks:
        low, high = interval(logs[:, :look], confidence)
        wrong = wrong | (low > 0) | (high < 0)
    return float(np.mean(wrong)), float(np.median(np.exp(high) - np.exp(low)))


def simulate(kind: str, looks: tuple[int, ...]) -> dict[str, Any]:
    logs = log_ratios(kind, np.random.default_rng(len(looks)), looks[-1], by_lot=True)
    share = look_confidence(len(looks))
    gate, width = missed(logs, looks, between_order_statistics, share)
    in_order = log_ratios(kind, np.random.default_rng(len(looks)), looks[-1], by_lot=False)
    return {
        "noise": kind, "looks": looks, "gate": gate, "width": width,
        "bootstrap": missed(logs, looks, bootstrap, share)[0],
        "95 % each look": missed(logs, looks, between_order_statistics, CONFIDENCE)[0],
        "order not by lot": missed(in_order, looks, between_order_statistics, share)[0],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = [simulate(kind, looks) for looks in LOOKS for kind in KINDS]
    table = Table(title="share of runs in which an interval misses the truth, %")
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(f"{100 * value:.1f}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)
    publish({"benchmark": "gate_statistics", "trials": TRIALS, "confidence": CONFIDENCE, "rows": rows}, args.out)


if __name__ == "__main__":
    main()
