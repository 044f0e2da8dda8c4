"""Measuring on tiny real artifacts: the document, more rounds, and what does not run."""

import json
import math
import statistics
from dataclasses import replace

import pytest

from saap_edge.engines.worker import Worker
from saap_edge.errors import SaapError
from saap_edge.exporting.gguf import write_gguf
from saap_edge.gating import Budget, judge
from saap_edge.measuring.document import compared
from saap_edge.measuring.measure import MOST, BenchConditions, Harness, Subject, measure, steps_of
from saap_edge.model.folder import build_pruned
from tests.conftest import WIDTHS, randomise_projections, tiny_model, write_folder

CONDITIONS = BenchConditions(1, 8, 4, 3, [[1, 2, 3, 4], [5, 6, 7, 8]], "abc", (16, 48))


@pytest.fixture(autouse=True, scope="module")
def one_load():
    """What costs a second each need not be measured three times here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saap_edge.measuring.measure.LOADS", 1)
        yield


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    folder, found, dense = tmp_path_factory.mktemp("bench"), [], tiny_model("llama")
    for role, model in (("dense", dense), ("pruned", randomise_projections(build_pruned(dense, WIDTHS)))):
        path, source = folder / f"{role}.gguf", write_folder(model, folder / role)
        summary = write_gguf(source, path, "f16")
        sizes = summary["projection_bytes"], summary["file_bytes"]
        found.append(Subject(f"{role} gguf-f16", role, "llama.cpp", "gguf-f16", path, *sizes, 1234, "m"))
    return found


@pytest.fixture(scope="module")
def document(subjects):
    steps = []
    result = measure(subjects, [(subjects[0].name, subjects[1].name)], CONDITIONS, steps.append)
    assert sum(steps) == steps_of(2, CONDITIONS)
    return result


def test_document(document):
    json.dumps(document.as_dict(), allow_nan=False)
    conditions = document["conditions"]
    assert document["schema"] == 2 and conditions["perplexity_tokens"] == 6 and conditions["rounds"] == 3
    assert 3 <= conditions["warm_up"]["rounds"] <= MOST and conditions["warm_up"]["stable"] in (True, False)
    assert document["machine"]["before"]["load_average"] >= 0 and "temperature_c" in document["machine"]["after"]
    for entry in document["artifacts"]:
        metrics = entry["metrics"]
        assert entry["model"] == "m" and metrics["parameters"] == 1234
        assert len(metrics["decode_tok_s"]["samples"]) == 3 and metrics["perplexity"] > 1
        assert metrics["peak_rss_mib"]["median"] >= metrics["peak_pss_mib"]["median"] > 10
        assert metrics["load_ms"]["median"] > 0 and metrics["noise"] >= 0
        assert 0 < metrics["cpu_share"] < 1.5
        assert metrics["itl_ms"]["p50"] <= metrics["itl_ms"]["p95"] <= metrics["itl_ms"]["p99"]
    [pair] = compared(document)
    dense, pruned = pair["base"]["metrics"], pair["candidate"]["metrics"]
    assert pruned["kv_bytes_per_token"] < dense["kv_bytes_per_token"] and pair["ideal_decode_ratio"] > 1


def test_ratios_are_those_of_the_rounds(document):
    [pair] = compared(document)
    for name in ("decode_tok_s", "prefill_tok_s"):
        base, candidate = (pair[side]["metrics"][name]["samples"] for side in ("base", "candidate"))
        rounds = [mine / its for its, mine in zip(base, candidate, strict=True)]
        ratio = pair["ratios"][name]
        assert ratio["ratio"] == pytest.approx(statistics.median(rounds)) and ratio["rounds"] == 3
    assert pair["ratios"]["ttft_ms"] == pair["ratios"]["prefill_tok_s"], "more than 1 is better in both"


def test_rows_are_those_of_llama_bench(document):
    """Its own definitions: tokens over the whole time of a repetition, arithmetic mean, sample deviation."""
    metrics = document["artifacts"][0]["metrics"]
    prefill, decoding = metrics["llama_bench"]
    assert (prefill["n_prompt"], prefill["n_gen"], decoding["n_prompt"], decoding["n_gen"]) == (8, 0, 0, 4)
    assert decoding["n_depth"] == 8 and prefill["model_filename"] == "dense.gguf" and prefill["use_mmap"] is True
    for row, tokens in ((prefill, 8), (decoding, 4)):
        rates = [1e9 * tokens / sample for sample in row["samples_ns"]]
        assert row["avg_ts"] == pytest.approx(statistics.mean(rates)) and row["samples_ts"] == pytest.approx(rates)
        assert row["stddev_ns"] == pytest.approx(statistics.stdev(row["samples_ns"]), abs=1)
    assert prefill["avg_ns"] == pytest.approx(1e6 * statistics.mean(metrics["ttft_ms"]["samples"]), abs=1)


def test_decoding_at_a_depth(document):
    """Keys and values of the context are read and held: bytes by the shapes, the rest measured."""
    widths = {"dense": 3 * 4, "pruned": sum(layer.kv_heads for layer in WIDTHS)}
    for entry in document["artifacts"]:
        kv_bytes = widths[entry["role"]] * 2 * 16 * 2  # keys and values of 16 half precision numbers a head
        first, second = entry["metrics"]["contexts"]
        assert [row["context"] for row in (first, second)] == [16, 48]
        assert (first["kv_bytes"], second["kv_bytes"]) == (16 * kv_bytes, 48 * kv_bytes)
        assert second["bytes_per_token"] - first["bytes_per_token"] == 32 * kv_bytes
        assert len(first["decode_tok_s"]["samples"]) == 3 and first["peak_rss_mib"] >= first["pss_mib"] > 5
    [pair] = document["comparisons"]
    assert [row["context"] for row in pair["contexts"]] == [16, 48]
    assert pair["contexts"][1]["ideal_decode_ratio"] > pair["contexts"][0]["ideal_decode_ratio"] > 1
    assert all(row["decode_tok_s"]["rounds"] == 3 for row in pair["contexts"])


def test_more_rounds_can_be_added(subjects):
    conditions = BenchConditions(1, 8, 4, 3)
    with Harness(subjects, [(subjects[0].name, subjects[1].name)], conditions) as harness:
        with pytest.raises(SaapError, match="nothing was measured"):
            harness.document()
        harness.run(2)
        first = harness.document()
        harness.run(3)
        second = harness.document()
    assert [d["conditions"]["rounds"] for d in (first, second)] == [2, 5]
    for before, after in zip(first["artifacts"], second["artifacts"], strict=True):
        samples = after["metrics"]["decode_tok_s"]["samples"]
        assert samples[:2] == before["metrics"]["decode_tok_s"]["samples"] and len(samples) == 5
    assert first["artifacts"][0]["metrics"]["perplexity"] is None


def test_what_is_not_compared_runs_for_itself(subjects):
    document = measure(subjects, [], BenchConditions(1, 8, 2, 2))
    assert len(document["artifacts"]) == 2 and document["comparisons"] == []
    assert all(math.isfinite(entry["metrics"]["ttft_ms"]["median"]) for entry in document["artifacts"])


def test_what_does_not_run_is_named(subjects, tmp_path):
    (tmp_path / "bad.gguf").write_bytes(subjects[0].path.read_bytes()[:1000])
    bad = Subject("bad", "candidate", "llama.cpp", "gguf-f16", tmp_path / "bad.gguf", 1, 1)
    with pytest.raises(SaapError, match=r"bad\.gguf"):
        measure([subjects[0], bad], [(subjects[0].name, "bad")], CONDITIONS)
    with pytest.raises(ValueError, match="different names"):
        Harness([subjects[0], subjects[0]], [], CONDITIONS)


def test_the_gate_reads_it(document):
    budget = Budget.model_validate({"limits": {"speedup_vs_dense": {"min": 0.001}, "file_mib": {"max": 0.0001}}})
    assert [verdict.verdict for verdict in judge(document, budget, True)] == ["pass", "fail"]


def test_a_type_of_cache_is_measured_and_told(tmp_path):
    model = write_folder(tiny_model("llama", head_dim=32), tmp_path / "model")
    summary = write_gguf(model, tmp_path / "m.gguf", "f16")
    sizes = summary["projection_bytes"], summary["file_bytes"]
    subject = Subject("m", "pruned", "llama.cpp", "gguf-f16", tmp_path / "m.gguf", *sizes)
    found = {
        kv: measure([subject], [], replace(CONDITIONS, contexts=(16,), kv=kv)) for kv in (None, "q4_0")
    }  # fmt: skip
    plain, small = (document.artifacts[0].metrics for document in found.values())
    assert found["q4_0"].conditions.kv == "q4_0" and found[None].conditions.kv is None
    assert [row.type_k for row in small.llama_bench] == ["q4_0"] * 2 and plain.llama_bench[0].type_k == "f16"
    assert small.kv_bytes_per_token * 64 == plain.kv_bytes_per_token * 18
    assert small.contexts[0].kv_bytes == 16 * small.kv_bytes_per_token and small.perplexity != plain.perplexity
    assert small.bytes_per_token - small.projection_bytes == 10 * small.kv_bytes_per_token


def test_perplexity_keeps_its_micro_batch(subjects, monkeypatch):
    """Rounds run with the micro-batch that is asked for; perplexity with the runtime's own, which it would move."""
    asked = []

    class Watched(Worker):
        def __init__(self, engine, path, threads, context, options, python=None):
            asked.append(options.ubatch)
            super().__init__(engine, path, threads, context, options, python)

        def score(self, requests):
            assert self.loaded["ubatch"] == 12
            return super().score(requests)

    for place in ("builds", "measure"):
        monkeypatch.setattr(f"saap_edge.measuring.{place}.Worker", Watched)
    found = measure(subjects[:1], [], replace(CONDITIONS, contexts=(), ubatch=4))
    assert sorted(asked, key=str) == [4, 4, None] and found.conditions.ubatch == 4
    assert found.artifacts[0].metrics.perplexity > 1
