"""Measuring until a verdict is reached: how often one looks, what that costs, and when one stops."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from saap_edge.gating import Budget
from saap_edge.gating.rerun import decides, timed_limits
from saap_edge.measuring.statistics import CONFIDENCE, look_confidence, order_rank, paired_ratio, planned_looks
from saap_edge.targets import Target
from tests.gating.support import artifact, bench, ratio, report, side_by_side, stat

BOARD = Target.model_validate(report()["target"])
ALPHA = 1 - CONFIDENCE


@given(st.integers(3, 50), st.integers(0, 400))
def test_looks_double_and_end_at_the_most(rounds, more):
    looks = planned_looks(rounds, rounds + more)
    assert looks[0] == rounds and looks[-1] == rounds + more and list(looks) == sorted(set(looks))
    assert all(after <= 2 * before for before, after in itertools.pairwise(looks))
    assert len(looks) <= 2 + np.log2((rounds + more) / rounds)
    assert look_confidence(len(looks)) == pytest.approx(1 - ALPHA / len(looks))
    assert planned_looks(rounds, rounds) == (rounds,) and look_confidence(1) == CONFIDENCE


@given(st.integers(1, 200), st.floats(0.5, 0.999))
def test_order_statistics_hold_the_median_as_often_as_they_say(count, confidence):
    """Against the binomial distribution itself: k covers, k + 1 would not."""
    rank = order_rank(count, confidence)
    if rank:
        assert 1 - 2 * binom.cdf(rank - 1, count, 0.5) >= confidence - 1e-9
    assert 1 - 2 * binom.cdf(rank, count, 0.5) < confidence + 1e-9


# Noise of log times, [trials, rounds], as one side of a round suffers it.
NOISE = {
    "normal": lambda rng, shape: rng.normal(0, 0.02, shape),
    "heavy": lambda rng, shape: 0.01 * rng.standard_t(2, shape),
    "bursts": lambda rng, shape: (
        rng.normal(0, 0.005, shape) + np.where(rng.random(shape) < 0.3, rng.exponential(0.3, shape), 0)
    ),
}


@pytest.mark.parametrize("kind", NOISE)
@pytest.mark.parametrize("looks", [(7,), (7, 14, 28), (10, 20, 40, 60)])
def test_looking_again_and_again_does_not_raise_false_alarms(kind, looks):
    """Two equal artifacts, judged at the worst place a limit can have: an alarm is any look whose interval misses the
    truth. Vectorised with the ranks that paired_ratio uses; all looks together may err in 5 % of runs."""
    rng = np.random.default_rng(len(kind) + len(looks))
    logs = NOISE[kind](rng, (6000, looks[-1])) - NOISE[kind](rng, (6000, looks[-1]))
    missed = np.zeros(len(logs), dtype=bool)
    for look in looks:
        rank = order_rank(look, look_confidence(len(looks)))
        assert rank > 0
        ordered = np.sort(logs[:, :look], axis=1)
        missed |= (ordered[:, rank - 1] > 0) | (ordered[:, -rank] < 0)
    error = np.sqrt(ALPHA * (1 - ALPHA) / len(logs))
    assert missed.mean() <= ALPHA + 2 * error
    one = paired_ratio(np.exp(logs[0]), np.ones(looks[-1]), look_confidence(len(looks)))
    assert one["low"] == pytest.approx(np.exp(ordered[0, rank - 1]))
    assert one["high"] == pytest.approx(np.exp(ordered[0, -rank]))


@settings(max_examples=50)
@given(st.floats(0.2, 5), st.integers(2, 12), st.randoms(use_true_random=False))
def test_a_drift_that_both_sides_share_moves_nothing(truth, count, dice):
    drift = np.array([dice.uniform(1, 3) for _ in range(count)])
    found = paired_ratio(truth * drift, drift)
    assert found["low"] == pytest.approx(truth) and found["high"] == pytest.approx(truth)


@pytest.mark.parametrize(("limit", "document", "decided"), [
    ({"metric": "decode_vs_baseline", "min": 0.95}, side_by_side(ratio(0.97, 0.94, 1.0)), False),
    ({"metric": "decode_vs_baseline", "min": 0.95}, side_by_side(ratio(0.97, 0.96, 1.0)), True),
    ({"metric": "decode_vs_baseline", "min": 0.95}, side_by_side(ratio(0.9, 0.89, 0.91)), True),
    ({"metric": "decode_vs_baseline", "min": 0.95}, bench(), True),  # nothing beside it: more rounds will not help
    ({"metric": "load_ms", "max": 20}, bench([artifact(load_ms=stat(20, 19, 21))]), True),
    ({"metric": "ttft_ms", "max": 50}, bench(), False), ({"metric": "file_mib", "max": 1}, bench(), True),
])  # fmt: skip
def test_more_rounds_only_where_they_can_decide(limit, document, decided):
    assert decides(Budget(limits=[limit]), BOARD)(document) is decided


def test_another_machine_than_the_target_is_not_measured_longer():
    budget = Budget(limits=[{"metric": "ttft_ms", "max": 50}])
    elsewhere = BOARD.model_copy(update={"cpu": "Another CPU"})
    assert decides(budget, elsewhere)(bench()) and decides(budget, None)(bench())
    assert timed_limits(Budget(limits=[{"metric": "file_mib", "max": 1}])).limits == ()
