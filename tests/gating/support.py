"""Bench documents (schema 2) written by hand."""

from __future__ import annotations

from typing import Any

MODEL = "a" * 64


def stat(median: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"median": median, "low": low or median, "high": high or median, "spread": 0, "samples": []}


def ratio(value: float, low: float, high: float) -> dict[str, Any]:
    return {"ratio": value, "low": low, "high": high, "confidence": 0.95, "rounds": 7}


def artifact(role: str = "pruned", format: str = "gguf-q4_0", model: str | None = MODEL, **changes: Any) -> dict:
    metrics = {
        "decode_tok_s": stat(100, 95, 105), "prefill_tok_s": stat(1000, 990, 1010), "ttft_ms": stat(50, 48, 52),
        "itl_ms": {"p50": 9.0, "p95": 12.5, "p99": 20.0}, "itl_p95_ms": stat(12, 11, 13), "load_ms": stat(20),
        "peak_rss_mib": stat(60), "peak_pss_mib": stat(55), "file_bytes": 3 * 2**20, "kv_bytes_per_token": 1000,
        "bytes_per_token": 2_100_000, "parameters": 4_000_000, "perplexity": 11.0, "energy_j_per_token": None,
        "noise": 0.01, "llama_bench": [],
    }  # fmt: skip
    return {
        "name": f"{role} {format}", "role": role, "format": format, "engine": "llama.cpp", "model": model,
        "metrics": metrics | changes,
    }  # fmt: skip


def beside(base: dict, candidate: dict, decode: dict | None = None) -> dict[str, Any]:
    ttft = ratio(1.1, 1.05, 1.15)
    return {
        "base": base["name"], "candidate": candidate["name"],
        "ratios": {"decode_tok_s": decode or ratio(1.3, 1.2, 1.4), "prefill_tok_s": ttft, "ttft_ms": ttft},
        "ideal_decode_ratio": 1.3,
    }  # fmt: skip


def bench(artifacts: list[dict] | None = None, comparisons: list[dict] | None = None, **conditions: Any) -> dict:
    """Dense against pruned where nothing else is given."""
    if artifacts is None:
        artifacts = [artifact("dense", perplexity=10.0), artifact()]
        comparisons = [beside(*artifacts)]
    return {
        "schema": 2, "machine": {"cpu": "A CPU", "cores": 2, "before": {}, "after": {}},
        "conditions": {
            "threads": 2, "prompt_tokens": 64, "decode_tokens": 32, "rounds": 7, "versions": {"llama-cpp-python": "1"},
            "perplexity_window": 256, "perplexity_tokens": 4080, "perplexity_text_sha256": "abc",
        } | conditions,
        "artifacts": artifacts, "comparisons": comparisons or [],
    }  # fmt: skip


def side_by_side(decode: dict | None = None, **changes: Any) -> dict:
    """main's artifact and the candidate of the same run."""
    base, candidate = artifact("baseline"), artifact("candidate", **changes)
    return bench([base, candidate], [beside(base, candidate, decode)])


def report(document: dict | None = None, **sections: Any) -> dict:
    target = {
        "name": "board", "title": "A board", "cpu": "A CPU", "cores": [{"kind": "cpu", "count": 2}],
        "ram_mib": [4096], "threads": 2, "source": "x",
    }  # fmt: skip
    bench_section = document or bench()
    return {"schema_version": 2, "model": {"name": "a-model"}, "target": target, "bench": bench_section} | sections
