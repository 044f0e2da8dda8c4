"""The report: one JSON, one page that needs nothing from anywhere."""

import json
import math
import re

import pytest
from rich.console import Console

from saap_edge.report.data import build_report, overall
from saap_edge.report.html import render_html
from saap_edge.report.prediction import render_predictions
from saap_edge.report.terminal import (
    render_bench,
    render_gate,
    render_plan,
    render_prune,
    render_recover,
    render_verify,
)
from tests.gating.support import report as gate_report
from tests.gating.support import stat

HOSTILE = "<script>alert(1)</script>"
TARGET = gate_report()["target"]


def sections():
    metrics = {
        "decode_tok_s": stat(100, 95, 105), "prefill_tok_s": stat(900), "ttft_ms": stat(50), "load_ms": stat(9),
        "peak_rss_mib": stat(60), "file_bytes": 3_000_000, "kv_bytes_per_token": 512, "bytes_per_token": 9,
        "perplexity": 12.5, "itl_ms": {"p50": 9.5, "p95": 10.5, "p99": 11.5}, "noise": 0.07, "cpu_share": 0.5,
        "peak_pss_mib": None, "energy_j_per_token": None,
        "contexts": [
            {"context": context, "decode_tok_s": stat(rate, rate - 5, rate + 5), "peak_rss_mib": 60 + context / 128,
             "kv_bytes": 512 * context}
            for context, rate in ((128, 95), (512, 80), (4096, 31))
        ],
    }  # fmt: skip
    ratio = {"ratio": 1.31, "low": 1.2, "high": 1.4, "confidence": 0.95, "rounds": 7}
    formats, contexts = ("gguf-q4_0", "onnx-int4"), [128, 512, 4096]
    artifacts = [
        {"name": f"{role} {name}", "role": role, "format": name, "metrics": metrics | {"perplexity": ppl}}
        for name in formats for role, ppl in (("dense", 12.5), ("pruned", 14.0))
    ]  # fmt: skip
    comparisons = [
        {"base": f"dense {name}", "candidate": f"pruned {name}", "ideal_decode_ratio": 1.4,
         "ratios": {"decode_tok_s": ratio, "prefill_tok_s": ratio, "ttft_ms": ratio},
         "contexts": [{"context": context, "decode_tok_s": ratio, "ideal_decode_ratio": 1.4} for context in contexts]}
        for name in formats
    ]  # fmt: skip
    warm_up = {"rounds": 10, "stable": False, "tolerance": 0.05, "most": 10}
    rates = {"value": 12.0, "low": 9.0, "high": 15.0}
    predicted = {
        "name": "pruned gguf-q4_0", "decode_tok_s": rates, "prefill_tok_s": None, "ttft_ms": None, "ram_mib": rates,
        "basis": "copying at 9 GB/s",
    }  # fmt: skip
    figures = {"perplexity_fp": 10.0, "perplexity_blocks": math.inf}
    verdict = {
        "metric": "ttft_ms", "kind": "on the board", "artifact": "gguf-q4_0", "name": "pruned gguf-q4_0",
        "limit": "<= 9", "value": 50, "low": 50, "high": 50, "limit_index": 0,
    }  # fmt: skip
    return {
        "model": {"name": HOSTILE, "family": "Llama", "layers": 2, "hidden": 64}, "target": TARGET,
        "plan": {
            "method": "saap", "order": "saap", "unit": "parameters", "ratio": 0.3, "achieved_ratio": 0.31,
            "parameters": [1000, 690],
            "candidates": [{"method": "saap", "achieved_ratio": 0.3, "heldout_perplexity": 9.0,
            "uniform": False, "chosen": True}],
            "layers": [{"layer": i, "heads": [8, 4], "kv_heads": [4, 2], "ffn": [777, 555 + i]} for i in range(2)],
        },
        "prune": {"heldout_perplexity": {"dense": 9.0, "cut": 12.0, "repaired": 11.0}},
        "recover": {"dense": figures, "before": figures, "after": figures, "tokens": 1000, "kept": "codes of step 5",
                    "format": "q4_0", "group": 32},
        "artifacts": [{"role": "pruned", "format": "gguf-q4_0", "path": "x", "bytes": 3, "sha256": "f" * 64}],
        "verify": [{"format": "gguf-q4_0", "role": "pruned", "max_error": 0.01, "tolerance": 0.08,
        "passed": True, "greedy_text": "[b] hi"}],
        "bench": {
            "schema": 2, "machine": {"cpu": "A CPU", "cores": 2, "governor": None, "load_average": 0.1,
                                      "before": {"throttled": "0x0"}, "after": {"throttled": "0x50000"}},
            "artifacts": artifacts, "comparisons": comparisons,
            "conditions": {"threads": 2, "prompt_tokens": 64, "decode_tokens": 32, "rounds": 7, "versions": {},
                           "contexts": contexts,
                           "perplexity_window": 256, "perplexity_tokens": 4080, "perplexity_text_sha256": "abc123",
                           "warm_up": warm_up},
        },
        "gate": {
            "exit_code": 1, "verdict": "fail", "model": None, "target": "A board",
            "machine": {"cpu": "A CPU", "cores": 2}, "conditions": {"prompt_tokens": 64, "decode_tokens": 32},
            "verdicts": [verdict | {"verdict": "fail", "reason": "50"}],
        },
        "predicted": [predicted], "versions": {"torch": "2"}, "lineage": {"plan": "plan-1"},
    }  # fmt: skip


def test_json_has_no_nan_and_a_schema():
    report = json.loads(json.dumps(build_report(sections()).as_dict(), allow_nan=False))
    assert report["schema_version"] == 2 and report["verdict"] == "fail"
    assert report["recover"]["after"]["perplexity_blocks"] is None


@pytest.mark.parametrize(("words", "expected"), [
    ([], "no limits given"), (["pass"], "pass"), (["pass", "inconclusive"], "inconclusive"), (["inconclusive",
    "fail"], "fail"),
])  # fmt: skip
def test_overall(words, expected):
    assert overall({"verdicts": [{"verdict": word} for word in words]}) == expected


def test_html_is_self_contained_complete_and_escaped():
    page = render_html(build_report(sections()))
    assert HOSTILE not in page and "&lt;script&gt;" in page
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#)|@import|url\((?!#)""", page)
    assert page.count("<svg") == 7 and "777 ⇒ 555" in page and "777 ⇒ 556" in page
    assert "<td>10.00</td><td>-</td>" in page, "what is not finite is a dash, not a nought"
    assert "1.31 [1.20, 1.40]" in page and "abc123" in page and ">fail<" in page


def test_predictions_stand_apart():
    """Only where the target is another machine, and under a title that nobody can take for a measurement."""
    there, here = build_report(sections()), build_report(sections() | {"predicted": []})
    page = render_html(there)
    assert "Predicted for A board, not measured" in page and "12 [9, 15]" in page and "<td>unknown</td>" in page
    assert "not measured" not in render_html(here)
    assert render_predictions(here) == [] and len(render_predictions(there)) == 2


def test_depths_only_where_they_were_measured():
    """Speed and memory over the context, and a row of the table for every one of them."""
    shallow = sections()
    shallow["bench"]["conditions"]["contexts"] = []
    heading = "As the context grows"
    assert heading not in render_html(build_report(shallow))
    page = render_html(build_report(sections()))
    assert heading in page and page.count("<td>4096</td>") == 2 and "<td>2.0 ⇒ 2.0</td>" in page


def test_the_same_report_gives_the_same_page():
    report = build_report(sections())
    assert render_html(report) == render_html(report)


def test_terminal_shows_everything():
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    made = report = build_report(sections())
    parts = render_plan(made["plan"]) + render_prune(made["prune"]) + render_verify(made["verify"])
    for part in parts + render_bench(report["bench"]) + render_gate(made["gate"]):
        console.print(part)
    for part in render_recover(sections()["recover"]):
        console.print(part)
    text = console.export_text()
    for expected in (
        "8 => 4",
        "777 => 555",
        "31.0% removed",
        "1.31 [1.20, 1.40]",
        "fail",
        "[b] hi",
        "repaired 11.00",
        "10.50",
        "did not settle in 10 rounds",
        "scatter by more than 5%",
        "0x0 => 0x50000",
        "had one 50% of the time",
    ):
        assert expected in text, expected
