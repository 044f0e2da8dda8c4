"""Statistics by their properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saap_edge.measuring.statistics import has_settled, paired_ratio, scatter, summary
from saap_edge.prediction.cost import bytes_per_token

samples = st.lists(st.floats(0.01, 1000), min_size=3, max_size=15)


@settings(max_examples=25, deadline=None)
@given(samples)
def test_the_median_lies_in_its_interval(values):
    stat = summary(values)
    assert stat["low"] <= stat["median"] * (1 + 1e-9) and stat["median"] <= stat["high"] * (1 + 1e-9)
    assert summary(values) == stat, "the same samples give the same figures"


@settings(max_examples=25, deadline=None)
@given(samples, st.floats(0.1, 10))
def test_a_constant_factor_is_found_whatever_the_drift(drift, factor):
    """Both members of a round suffer the same drift: the paired ratio does not see it."""
    ratio = paired_ratio([factor * value for value in drift], drift)
    assert ratio["ratio"] == pytest.approx(factor) and ratio["high"] == pytest.approx(ratio["low"])
    assert ratio["rounds"] == len(drift)


def test_interval_covers_the_truth():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(60):
        noise = rng.normal(0, 0.05, (2, 15))
        ratio = paired_ratio(1.3 * np.exp(noise[0]), np.exp(noise[1]))
        hits += ratio["low"] <= 1.3 <= ratio["high"]
    assert hits >= 50


def test_no_samples_no_ratio():
    with pytest.raises(ValueError):
        paired_ratio([], [])


def test_scatter_of_normal_samples_is_their_standard_deviation():
    values = np.random.default_rng(0).normal(20, 1, 4000)
    assert scatter(values) == pytest.approx(0.05, rel=0.05)


@given(samples, st.floats(0.1, 10))
def test_scatter_is_relative_and_deaf_to_one_outlier(values, factor):
    assert scatter([factor * value for value in values]) == pytest.approx(scatter(values), rel=1e-6, abs=1e-9)
    assert scatter([5.0] * len(values) + values[:1]) == 0


@given(samples, st.integers(2, 5), st.floats(0, 1))
def test_settled_means_that_the_last_few_agree(values, last, tolerance):
    recent = sorted(values[-last:])
    agree = all(high <= (1 + tolerance) * low for low in recent for high in recent)
    assert has_settled(values, last, tolerance) == (len(values) >= last and agree)


def test_a_warm_up_settles_once_its_beginning_is_over():
    curve = [2.0, 1.4, 1.1, 1.02, 1.0, 1.01]
    assert [has_settled(curve[:n], 3, 0.05) for n in range(1, 7)] == [False] * 4 + [False, True]


def test_bytes_per_token():
    assert bytes_per_token(1000, 10, 50) == 1500
