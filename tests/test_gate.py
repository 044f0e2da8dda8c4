"""The gate's verdicts, case by case and by property."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from saap_edge.gate import Budget, exit_code, judge


def stat(median, low=None, high=None):
    return {"median": median, "low": low or median, "high": high or median, "spread": 0, "samples": []}


def bench(**changes):
    metrics = {
        "decode_tok_s": stat(100, 95, 105), "prefill_tok_s": stat(1000, 990, 1010), "ttft_ms": stat(50, 48, 52),
        "load_ms": stat(20), "peak_rss_mib": stat(60), "file_bytes": 3 * 2**20, "kv_bytes_per_token": 1000,
        "bytes_per_token": 1, "perplexity": 11.0,
    }  # fmt: skip
    dense, pruned = ("dense gguf-q4_0", "pruned gguf-q4_0")
    artifacts = [
        {"name": dense, "role": "dense", "format": "gguf-q4_0", "metrics": metrics | {"perplexity": 10.0}},
        {"name": pruned, "role": "pruned", "format": "gguf-q4_0", "metrics": metrics | changes},
    ]
    ratios = {"decode_tok_s": {"ratio": 1.3, "low": 1.2, "high": 1.4, "confidence": 0.95, "rounds": 7}}
    return {"artifacts": artifacts, "comparisons": [{"base": dense, "candidate": pruned, "ratios": ratios}]}


def without_metrics():
    document = bench()
    document["artifacts"][1]["metrics"] = {}
    return document


def one(metric, on_target=True, document=None, **limit):
    budget = Budget.model_validate({"limits": [{"metric": metric, **limit}]})
    verdicts = judge(document or bench(), budget, on_target)
    assert len(verdicts) == 1
    return verdicts[0]


@pytest.mark.parametrize(("metric", "limit", "expected"), [
    ("decode_tok_s", {"min": 90}, "pass"), ("decode_tok_s", {"min": 110}, "fail"), ("decode_tok_s",
    {"min": 100}, "inconclusive"),
    ("ttft_ms", {"max": 53}, "pass"), ("ttft_ms", {"max": 47}, "fail"), ("ttft_ms", {"max": 50}, "inconclusive"),
    ("speedup_vs_dense", {"min": 1.2}, "pass"), ("speedup_vs_dense", {"min": 1.3}, "inconclusive"),
    ("speedup_vs_dense", {"min": 1.5}, "fail"), ("file_mib", {"max": 3}, "pass"), ("file_mib", {"max": 2.99}, "fail"),
    ("kv_bytes_per_token", {"min": 500, "max": 1500}, "pass"), ("perplexity_increase_pct", {"max": 10.01}, "pass"),
    ("perplexity_increase_pct", {"max": 9.9}, "fail"), ("perplexity", {"max": 11}, "pass"),
])  # fmt: skip
def test_verdicts(metric, limit, expected):
    assert one(metric, **limit).verdict == expected


@given(st.floats(1, 1000), st.floats(0, 100), st.floats(0, 100), st.floats(1, 1000))
def test_verdict_follows_the_interval(median, below, above, limit):
    low, high = median - min(below, median / 2), median + above
    document = bench(decode_tok_s=stat(median, low, high))
    expected = "pass" if low >= limit else "fail" if high < limit else "inconclusive"
    assert one("decode_tok_s", document=document, min=limit).verdict == expected


def test_figures_of_another_machine_never_pass_or_fail():
    for limit in ({"min": 1}, {"min": 1000}):
        verdict = one("decode_tok_s", on_target=False, **limit)
        assert verdict.verdict == "inconclusive" and "not the target" in verdict.reason
    assert one("speedup_vs_dense", on_target=False, min=1.1).verdict == "pass"


@pytest.mark.parametrize("document", [
    bench(perplexity=None), bench(perplexity=math.nan), {"artifacts": [], "comparisons": []}, without_metrics(),
])  # fmt: skip
def test_what_was_not_measured_is_inconclusive(document):
    assert one("perplexity", document=document, max=100).verdict == "inconclusive"


def test_an_artifact_that_was_not_benched_is_inconclusive():
    verdict = one("file_mib", max=10, artifact="onnx-int4")
    assert verdict.verdict == "inconclusive" and "not benched" in verdict.reason


@given(st.lists(st.sampled_from(["pass", "fail", "inconclusive"])))
def test_exit_code(words):
    verdict = one("file_mib", max=10)
    code = exit_code([verdict.model_copy(update={"verdict": word}) for word in words])
    assert code == (1 if "fail" in words else 3 if "inconclusive" in words else 0)


@pytest.mark.parametrize("limit", [
    {"metric": "file_mib"}, {"metric": "speed", "min": 1}, {"metric": "file_mib", "min": 2, "max": 1},
    {"metric": "file_mib", "max": 1, "artifact": "gguf"}, {"metric": "file_mib", "maximum": 1},
])  # fmt: skip
def test_malformed_limits_are_refused(limit):
    with pytest.raises(ValidationError):
        Budget.model_validate({"limits": [limit]})


def test_short_form_and_round_trip():
    budget = Budget.model_validate({"limits": {"ttft_ms": {"max": 500}, "file_mib": {"max": 3}}})
    assert [limit.metric for limit in budget.limits] == ["ttft_ms", "file_mib"]
    assert Budget.model_validate(budget.model_dump(mode="json")) == budget
