"""The gate's verdicts, case by case and by property."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from saap_edge.errors import SaapError
from saap_edge.gating import METRICS, Budget, Kind, exit_code, judge
from saap_edge.prediction.predict import ArtifactCost, predict
from saap_edge.targets import Bandwidth, Target, load_target
from saap_edge.yaml_lines import item_lines, load_yaml_model
from tests.gating.support import artifact, bench, beside, ratio, report, side_by_side, stat

BOARD = Target.model_validate(report()["target"])


def one(metric, on_target=True, document=None, baseline=None, target=None, **limit):
    budget = Budget.model_validate({"limits": [{"metric": metric, **limit}]})
    verdicts = judge(document or bench(), budget, on_target, target, baseline)
    assert len(verdicts) == 1
    return verdicts[0]


@pytest.mark.parametrize(("metric", "limit", "expected"), [
    ("decode_tok_s", {"min": 90}, "pass"), ("decode_tok_s", {"min": 110}, "fail"),
    ("decode_tok_s", {"min": 100}, "inconclusive"), ("itl_p95_ms", {"max": 13}, "pass"),
    ("itl_p95_ms", {"max": 10}, "fail"), ("itl_p95_ms", {"max": 12}, "inconclusive"),
    ("ttft_ms", {"max": 53}, "pass"), ("ttft_ms", {"max": 47}, "fail"), ("ttft_ms", {"max": 50}, "inconclusive"),
    ("speedup_vs_dense", {"min": 1.2}, "pass"), ("speedup_vs_dense", {"min": 1.3}, "inconclusive"),
    ("speedup_vs_dense", {"min": 1.5}, "fail"), ("ttft_vs_dense", {"min": 1.0}, "pass"),
    ("file_mib", {"max": 3}, "pass"), ("file_mib", {"max": 2.99}, "fail"), ("parameters", {"max": 4e6}, "pass"),
    ("bytes_per_token", {"max": 2e6}, "fail"), ("kv_bytes_per_token", {"min": 500, "max": 1500}, "pass"),
    ("perplexity_increase_pct", {"max": 10.01}, "pass"), ("perplexity_increase_pct", {"max": 9.9}, "fail"),
    ("perplexity", {"max": 11}, "pass"), ("peak_pss_mib", {"max": 54}, "fail"),
    ("energy_j_per_token", {"max": 1}, "inconclusive"), ("instructions_per_token", {"max": 1}, "inconclusive"),
])  # fmt: skip
def test_verdicts(metric, limit, expected):
    assert one(metric, **limit).verdict == expected


def chats(followed, ended=None):
    return {"chat": {"followed": followed, "ended": followed if ended is None else ended}}


def beside_dense(dense, pruned):
    artifacts = [artifact("dense", **chats(dense)), artifact(**chats(pruned))]
    return bench(artifacts, [beside(*artifacts)])


# 40 instructions: all, 30, 28, 18 or none are followed. Wilson's 95 %: 75 % [59.8, 85.8]. Two lost of 40: 5 points
# [-4.5, 14.0]; 12 lost: 30 points [13.4, 43.7].
YES, NO = [True], [False]


@pytest.mark.parametrize(("metric", "limit", "pruned", "expected"), [
    ("chat_followed_pct", {"min": 59}, YES * 30 + NO * 10, "pass"),
    ("chat_ends_pct", {"min": 86}, YES * 30 + NO * 10, "fail"),
    ("chat_followed_pct", {"min": 74}, YES * 30 + NO * 10, "inconclusive"),
    ("chat_followed_pct", {"min": 80}, YES * 30 + NO * 10, "inconclusive"),
    ("chat_ends_pct", {"min": 90}, YES * 40, "pass"), ("chat_followed_pct", {"min": 10}, NO * 40, "fail"),
    ("chat_followed_drop_points", {"max": 15}, YES * 28 + NO * 12, "pass"),
    ("chat_followed_drop_points", {"max": 4}, YES * 28 + NO * 12, "inconclusive"),
    ("chat_ends_drop_points", {"max": 13}, YES * 18 + NO * 22, "fail"),
    ("chat_followed_drop_points", {"max": 5}, YES * 30 + NO * 10, "inconclusive"),
    ("chat_followed_drop_points", {"max": 5}, [None] * 40, "inconclusive"),
])  # fmt: skip
def test_shares_of_instructions(metric, limit, pruned, expected):
    """Limits on what was lost compare instruction by instruction with the dense model, which follows 30 of 40."""
    verdict = one(metric, on_target=None, document=beside_dense(YES * 30 + NO * 10, pruned), **limit)
    assert (verdict.verdict, verdict.kind) == (expected, Kind.SAMPLED)
    if expected == "inconclusive" and verdict.value is not None:
        assert "ask more (bench.chat)" in verdict.reason


def test_calls_that_a_template_does_not_know_do_not_count():
    found = one("chat_followed_pct", document=beside_dense(YES * 4, [True, None, False, True]), min=0)
    assert found.value == pytest.approx(200 / 3)
    lost = one(
        "chat_followed_drop_points", document=beside_dense([True, True, True, None], [True, None, False, True]), max=99
    )
    assert lost.value == pytest.approx(50)
    nothing = one("chat_followed_pct", min=0)
    assert nothing.verdict == "inconclusive" and "no chat was measured: bench.chat" in nothing.reason
    alone = one("chat_ends_drop_points", document=bench([artifact(**chats(YES))]), max=99)
    assert alone.verdict == "inconclusive" and "nothing dense" in alone.reason


@given(st.floats(1, 1000), st.floats(0, 100), st.floats(0, 100), st.floats(1, 1000))
def test_verdict_follows_the_interval(median, below, above, limit):
    low, high = median - min(below, median / 2), median + above
    document = bench([artifact(decode_tok_s=stat(median, low, high))])
    expected = "pass" if low >= limit else "fail" if high < limit else "inconclusive"
    assert one("decode_tok_s", document=document, min=limit).verdict == expected


SUSTAINED = {
    "sustained_pct": stat(98), "sustained_tok_s": stat(9),
    "sustained": {
        "seconds": 60, "blocks": 20, "part_s": 6, "pct": stat(98), "first_tok_s": stat(10), "last_tok_s": stat(9),
    },
}  # fmt: skip


@pytest.mark.parametrize("metric", [name for name, kind in METRICS.items() if kind is Kind.BOARD])
@pytest.mark.parametrize(("on_target", "why"), [(False, "not the target"), (None, "no target is named")])
def test_figures_of_another_machine_never_pass_or_fail(metric, on_target, why):
    for limit in ({"min": 1e-6}, {"min": 1e9}):
        verdict = one(metric, on_target, bench([artifact(round_j_per_token=stat(0.1), **SUSTAINED)]), **limit)
        assert verdict.verdict == "inconclusive" and why in verdict.reason


def test_ratios_and_counts_hold_on_any_machine():
    assert one("speedup_vs_dense", on_target=False, min=1.1).verdict == "pass"
    assert one("file_mib", on_target=None, max=1).verdict == "fail"


def test_the_baseline_of_the_same_run():
    document = side_by_side(ratio(0.91, 0.90, 0.93), file_bytes=4 * 2**20)
    assert one("decode_vs_baseline", document=document, min=0.95).verdict == "fail"
    assert one("prefill_vs_baseline", document=document, min=0.95).verdict == "pass"
    change = one("file_mib_change_pct", document=document, max=1)
    assert change.verdict == "fail" and change.value == pytest.approx(100 / 3)
    verdict = one("speedup_vs_dense", document=document, min=1)
    assert verdict.verdict == "inconclusive" and "no dense" in verdict.reason


def test_the_baseline_of_another_run():
    """Counted figures are compared; timings never, however large the difference."""
    main = bench([artifact(file_bytes=2 * 2**20, perplexity=10.0, decode_tok_s=stat(1e6))])
    change = one("file_mib_change_pct", baseline=main, max=49)
    assert change.verdict == "fail" and change.value == pytest.approx(50)
    assert one("perplexity_change_pct", baseline=main, max=10.1).verdict == "pass"
    assert one("parameters_change_pct", baseline=main, min=0, max=0).verdict == "pass"
    for name in ("decode", "prefill", "ttft"):
        verdict = one(f"{name}_vs_baseline", baseline=main, min=0.5)
        assert verdict.verdict == "inconclusive" and "timings of another run" in verdict.reason
    assert one("file_mib_change_pct", max=1).verdict == "inconclusive"
    verdict = one("file_mib_change_pct", baseline=bench([artifact(format="onnx-int4")]), max=1)
    assert verdict.verdict == "inconclusive" and "no gguf-q4_0" in verdict.reason


@pytest.mark.parametrize(("metric", "change"), [
    ("bytes_per_token", {"prompt_tokens": 128}), ("perplexity", {"perplexity_text_sha256": "other"}),
    ("perplexity", {"perplexity_window": 128}), ("instructions_per_token", {"versions": {"llama-cpp-python": "2"}}),
])  # fmt: skip
def test_counts_under_other_conditions_are_not_compared(metric, change):
    now, main = (bench([artifact(instructions_per_token=5)], **conditions) for conditions in ({}, change))
    assert one(f"{metric}_change_pct", document=now, baseline=now, max=0).verdict == "pass"
    verdict = one(f"{metric}_change_pct", document=now, baseline=main, max=0)
    assert verdict.verdict == "inconclusive" and "other conditions" in verdict.reason
    assert one("file_mib_change_pct", document=now, baseline=main, max=0).verdict == "pass"


@pytest.mark.parametrize("document", [
    bench([artifact(perplexity=None)]), bench([artifact(perplexity=math.nan)]), bench([]),
    bench([artifact(perplexity="high")]), bench([artifact() | {"metrics": {}}]),
    ])  # fmt: skip
def test_what_was_not_measured_is_inconclusive(document):
    assert one("perplexity", document=document, max=100).verdict == "inconclusive"


def test_a_time_taken_once_decides_nothing():
    document = bench([artifact(itl_p95_ms=12.0, round_j_per_token=0.2)])
    for metric in ("itl_p95_ms", "energy_j_per_token"):
        assert "without an interval" in one(metric, document=document, max=100).reason


def test_an_artifact_that_was_not_benched_is_inconclusive():
    verdict = one("file_mib", max=10, artifact="onnx-int4")
    assert verdict.verdict == "inconclusive" and "not benched" in verdict.reason and verdict.artifact == "onnx-int4"


def test_only_what_ships_is_judged():
    """A dense model is judged where it was measured for itself, not where it is there to compare with."""
    assert [v.name for v in judge(bench(), Budget(limits=[{"metric": "file_mib", "max": 9}]), True)] == [
        "pruned gguf-q4_0"
    ]
    assert one("file_mib", document=bench([artifact("dense")]), max=9).name == "dense gguf-q4_0"


def test_predictions_need_a_target_and_are_called_so():
    verdict = one("predicted_decode_tok_s", on_target=None, min=1)
    assert verdict.verdict == "inconclusive" and "--target" in verdict.reason and verdict.kind is Kind.PREDICTED
    parts = artifact()["metrics"]
    board, cost = load_target("rpi5"), ArtifactCost("gguf-q4_0", 2_100_000 - 1000 * 80, 1000, 3 * 2**20, 4_000_000)
    assert parts["bytes_per_token"] == cost.projection_bytes + 1000 * (64 + 32 // 2)
    told = predict(cost, board, 64, 80)
    for name in ("decode_tok_s", "prefill_tok_s", "ttft_ms", "ram_mib"):
        estimate = getattr(told, name)
        for limit, expected in ((estimate.low, "pass"), (estimate.value, "inconclusive"), (estimate.high * 2, "fail")):
            verdict = one(f"predicted_{name}", on_target=False, target=board, min=limit)
            assert verdict.verdict == expected and verdict.reason.startswith("predicted ")
            assert (verdict.value, verdict.low, verdict.high) == (estimate.value, estimate.low, estimate.high)


def test_what_cannot_be_predicted_is_inconclusive():
    board = load_target("rpi5")
    nothing = board.model_copy(update={"bandwidth_gb_s": Bandwidth(), "kernels": {}})
    for target, metrics in ((nothing, {}), (board, {"parameters": None})):
        document = bench([artifact(**metrics)])
        assert one("predicted_decode_tok_s", document=document, target=target, min=0).verdict == "inconclusive"


@given(st.lists(st.sampled_from(["pass", "fail", "inconclusive"])))
def test_exit_code(words):
    verdict = one("file_mib", max=10)
    code = exit_code([verdict.model_copy(update={"verdict": word}) for word in words])
    assert code == (1 if "fail" in words else 3 if "inconclusive" in words else 0)


@pytest.mark.parametrize("limit", [
    {"metric": "file_mib"}, {"metric": "speed", "min": 1}, {"metric": "file_mib", "min": 2, "max": 1},
    {"metric": "file_mib", "max": 1, "artifact": "gguf"}, {"metric": "file_mib", "maximum": 1},
    {"metric": "file_mib", "max": math.nan}, {"metric": "file_mib", "max": math.inf},
])  # fmt: skip
def test_malformed_limits_are_refused(limit):
    with pytest.raises(ValidationError):
        Budget.model_validate({"limits": [limit]})


@pytest.mark.parametrize(("text", "expected"), [
    ("limits:\n  - {metric: ttft, max: 5}\n", r"b\.yaml:2: .*unknown metric 'ttft', did you mean 'ttft_ms'\?"),
    ("limits:\n  file_mib: {max: 5}\n  decode_toks: {min: 5}\n", r"b\.yaml:3: .*did you mean 'decode_tok_s'\?"),
    ("limits:\n  x: {max: 5}\n", r"b\.yaml:2: .*unknown metric 'x', known are decode_tok_s"),
    ("limits:\n  file_mib: {max: 5}\n  file_mib: {max: 9}\n", r"b\.yaml:3: 'file_mib' is there twice"),
    ("limits:\n  - {metric: file_mib, max: .nan}\n", r"b\.yaml:2: .*finite"),
])  # fmt: skip
def test_a_wrong_budget_is_refused_where_it_is_wrong(tmp_path, text, expected):
    (tmp_path / "b.yaml").write_text(text)
    with pytest.raises(SaapError, match=expected):
        load_yaml_model(tmp_path / "b.yaml", Budget)


def test_short_form_and_round_trip(tmp_path):
    budget = Budget.model_validate({"limits": {"ttft_ms": {"max": 500}, "file_mib": {"max": 3}}})
    assert [limit.metric for limit in budget.limits] == ["ttft_ms", "file_mib"]
    assert Budget.model_validate(budget.model_dump(mode="json")) == budget
    for text in ("limits:\n  ttft_ms: {max: 1}\n\n  file_mib:\n    max: 3\n", "limits:\n- {a: 1}\n\n- {b: 2}\n"):
        (tmp_path / "b.yaml").write_text(text)
        assert item_lines(tmp_path / "b.yaml", "limits") == [2, 4]


def test_two_candidates_are_judged_each_beside_its_own():
    dense, fast, slow = artifact("dense"), artifact(), artifact(format="onnx-int4")
    document = bench([dense, fast, slow], [beside(dense, fast), beside(dense, slow, ratio(0.8, 0.7, 0.9))])
    verdicts = judge(document, Budget(limits=[{"metric": "speedup_vs_dense", "min": 1}]), True)
    assert [(v.artifact, v.verdict) for v in verdicts] == [("gguf-q4_0", "pass"), ("onnx-int4", "fail")]


def cached(kind, **changes):
    rows = {
        "model_filename": "m.gguf", "n_threads": 1, "n_prompt": 8, "n_gen": 0, "n_depth": 0, "avg_ns": 1,
        "stddev_ns": 0, "avg_ts": 1.0, "stddev_ts": 0.0, "samples_ns": [1], "samples_ts": [1.0], "type_k": kind,
    }  # fmt: skip
    return bench([artifact(llama_bench=[rows], **changes)], kv=kind)


def test_counts_of_two_types_of_cache_are_not_compared():
    now, main = cached("q8_0", kv_bytes_per_token=531), cached("f16")
    for metric in ("kv_bytes_per_token", "bytes_per_token", "perplexity"):
        verdict = one(f"{metric}_change_pct", document=now, baseline=main, max=0)
        assert verdict.verdict == "inconclusive" and "KV cache in f16, this artifact in q8_0" in verdict.reason, metric
        assert one(f"{metric}_change_pct", document=now, baseline=now, max=0).verdict == "pass"
    assert one("file_mib_change_pct", document=now, baseline=main, max=0).verdict == "pass", "the file has no cache"
    old = bench([artifact()])  # says nothing of its cache
    assert one("perplexity_change_pct", document=now, baseline=old, max=0).verdict == "pass"
