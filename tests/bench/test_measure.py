"""Statistics by their properties; measuring on tiny real artifacts."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saap_edge.bench.cost import bytes_per_token
from saap_edge.bench.measure import BenchConditions, Pair, Subject, measure_pairs, steps_of
from saap_edge.bench.statistics import paired_ratio, summary
from saap_edge.export.gguf import write_gguf
from saap_edge.gate import Budget, judge

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


def test_bytes_per_token():
    assert bytes_per_token(1000, 10, 50) == 1500


@pytest.fixture(scope="module")
def document(tmp_path_factory, dense_folder, pruned_folder):
    folder, subjects = tmp_path_factory.mktemp("bench"), []
    for name, source in (("dense", dense_folder), ("pruned", pruned_folder)):
        summary = write_gguf(source, folder / f"{name}.gguf", "f16")
        subjects.append(Subject(folder / f"{name}.gguf", summary["projection_bytes"], summary["file_bytes"]))
    conditions = BenchConditions(1, 8, 4, 3, [[1, 2, 3, 4], [5, 6, 7, 8]], "abc")
    calls = []
    result = measure_pairs([Pair("llama.cpp", "gguf-f16", *subjects)], conditions, lambda: calls.append(1))
    assert len(calls) == steps_of(conditions)
    return result


def test_document(document):
    json.dumps(document, allow_nan=False)
    assert document["schema"] == 1 and document["conditions"]["perplexity_tokens"] == 6
    pair = document["pairs"][0]
    for role in ("dense", "pruned"):
        metrics = pair[role]
        assert len(metrics["decode_tok_s"]["samples"]) == 3 and metrics["perplexity"] > 1
        assert metrics["peak_rss_mib"]["median"] > 10 and metrics["load_ms"]["median"] > 0
    assert pair["pruned"]["kv_bytes_per_token"] < pair["dense"]["kv_bytes_per_token"]
    assert pair["ideal_decode_ratio"] > 1


def test_the_gate_reads_it(document):
    budget = Budget.model_validate({"limits": {"speedup_vs_dense": {"min": 0.001}, "file_mib": {"max": 0.0001}}})
    assert [verdict.verdict for verdict in judge(document, budget, True)] == ["pass", "fail"]
