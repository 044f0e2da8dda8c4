"""Measuring: dense against pruned, in alternating runs of two child processes that do nothing else.

Definitions. Time to first token: from an empty cache until the first token is chosen, prefill included. Prefill rate:
prompt tokens over that time. Decode rate: one over the median seconds of a step, per round. Load time: opening the
artifact in a fresh process, the runtime's import not counted. Peak RSS: the highest resident memory of a process that
imported the runtime, loaded the artifact and ran one round.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from saap_edge.bench.cost import bytes_per_token
from saap_edge.bench.machine import machine_facts, versions
from saap_edge.bench.statistics import paired_ratio, summary
from saap_edge.engines.worker import Worker

__all__ = ["BenchConditions", "Pair", "Subject", "measure_pairs", "steps_of"]

ROLES = ("dense", "pruned")
WARMUP = 2
LOADS = 3


@dataclass(frozen=True)
class Subject:
    """One artifact to measure; `projection_bytes` are the weight bytes that decoding a token reads."""

    path: Path
    projection_bytes: int
    file_bytes: int


@dataclass(frozen=True)
class Pair:
    """The same format, dense and pruned."""

    engine: str
    format: str
    dense: Subject
    pruned: Subject


@dataclass(frozen=True)
class BenchConditions:
    """What every figure is measured under. `windows` are token ids for perplexity (none: it is not measured)."""

    threads: int
    prompt_tokens: int
    decode_tokens: int
    rounds: int
    windows: list[list[int]] = field(default_factory=list)
    text_sha256: str | None = None

    @property
    def context(self) -> int:
        """Tokens the KV cache has to hold."""
        return max([self.prompt_tokens + self.decode_tokens, *map(len, self.windows)])


def steps_of(conditions: BenchConditions) -> int:
    """How often `measure_pairs` calls `progress` for one pair."""
    return 2 * LOADS + conditions.rounds + WARMUP + 2


def measure_pairs(
    pairs: list[Pair], conditions: BenchConditions, progress: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Measure every pair; returns the bench document (schema 1): machine, conditions, pairs.

    Raises SaapError when an artifact does not run.
    """
    machine = machine_facts()
    measured = [_measure_pair(pair, conditions, progress) for pair in pairs]
    return {
        "schema": 1,
        "machine": machine,
        "conditions": {
            "threads": conditions.threads,
            "prompt_tokens": conditions.prompt_tokens,
            "decode_tokens": conditions.decode_tokens,
            "rounds": conditions.rounds,
            "versions": versions(),
            "perplexity_window": len(conditions.windows[0]) if conditions.windows else 0,
            "perplexity_tokens": sum(len(window) - 1 for window in conditions.windows),
            "perplexity_text_sha256": conditions.text_sha256,
        },
        "pairs": measured,
    }


def _measure_pair(pair: Pair, conditions: BenchConditions, progress: Callable[[], None]) -> dict[str, Any]:
    subjects = {role: getattr(pair, role) for role in ROLES}
    loads = _fresh_loads(pair, subjects, conditions, progress)
    with ExitStack() as stack:
        workers = {
            role: stack.enter_context(Worker(pair.engine, subjects[role].path, conditions.threads, conditions.context))
            for role in ROLES
        }
        timings = _alternate(workers, conditions, progress)
        perplexities = {}
        for role in ROLES:
            perplexities[role] = _perplexity(workers[role], conditions.windows)
            progress()
        kv_bytes = {role: int(workers[role].loaded["kv_bytes_per_token"]) for role in ROLES}
    metrics = {
        role: _metrics(subjects[role], loads[role], timings[role], kv_bytes[role], perplexities[role], conditions)
        for role in ROLES
    }
    dense, pruned = timings["dense"], timings["pruned"]
    ttft = paired_ratio(dense["ttft_s"], pruned["ttft_s"])
    return {
        "engine": pair.engine,
        "format": pair.format,
        **metrics,
        "ratios": {
            "decode_tok_s": paired_ratio(dense["step_s"], pruned["step_s"]),
            "prefill_tok_s": ttft,
            "ttft_ms": ttft,
        },
        "ideal_decode_ratio": metrics["dense"]["bytes_per_token"] / metrics["pruned"]["bytes_per_token"],
    }


def _fresh_loads(
    pair: Pair, subjects: dict[str, Subject], conditions: BenchConditions, progress: Callable[[], None]
) -> dict[str, dict[str, list[float]]]:
    """Load time and peak memory, each from a process that does nothing before."""
    found: dict[str, dict[str, list[float]]] = {role: {"load_s": [], "peak": []} for role in ROLES}
    for number in range(LOADS):
        for role in ROLES[:: 1 if number % 2 == 0 else -1]:
            with Worker(pair.engine, subjects[role].path, conditions.threads, conditions.context) as worker:
                worker.time(_prompt(worker, conditions), conditions.decode_tokens)
                found[role]["load_s"].append(worker.loaded["seconds"])
                found[role]["peak"].append(worker.memory()["peak"])
            progress()
    return found


def _alternate(
    workers: dict[str, Worker], conditions: BenchConditions, progress: Callable[[], None]
) -> dict[str, dict[str, list[float]]]:
    """Rounds of both, the order turned round every time so that a drift of the machine meets both alike."""
    found: dict[str, dict[str, list[float]]] = {role: {"ttft_s": [], "step_s": []} for role in ROLES}
    prompt = _prompt(workers["dense"], conditions)
    for number in range(WARMUP + conditions.rounds):
        for role in ROLES[:: 1 if number % 2 == 0 else -1]:
            timing = workers[role].time(prompt, conditions.decode_tokens)
            if number >= WARMUP:
                found[role]["ttft_s"].append(timing["ttft_s"])
                found[role]["step_s"].append(float(np.median(timing["decode_s"])))
        progress()
    return found


def _prompt(worker: Worker, conditions: BenchConditions) -> list[int]:
    """Token ids that every vocabulary has; the time does not depend on which they are."""
    ids = np.random.default_rng(0).integers(0, int(worker.loaded["vocab_size"]), conditions.prompt_tokens)
    return [int(token) for token in ids]


def _perplexity(worker: Worker, windows: list[list[int]]) -> float | None:
    if not windows:
        return None
    nll, tokens = worker.nll(windows)
    return math.exp(nll / tokens) if nll / tokens < 700 else None


def _metrics(
    subject: Subject, loads: dict[str, list[float]], timing: dict[str, list[float]], kv_bytes: int,
    perplexity: float | None,
    conditions: BenchConditions,
) -> dict[str, Any]:  # fmt: skip
    middle = conditions.prompt_tokens + conditions.decode_tokens // 2
    return {
        "decode_tok_s": summary([1 / seconds for seconds in timing["step_s"]]),
        "prefill_tok_s": summary([conditions.prompt_tokens / seconds for seconds in timing["ttft_s"]]),
        "ttft_ms": summary([1000 * seconds for seconds in timing["ttft_s"]]),
        "load_ms": summary([1000 * seconds for seconds in loads["load_s"]]),
        "peak_rss_mib": summary([peak / 2**20 for peak in loads["peak"]]),
        "file_bytes": subject.file_bytes,
        "kv_bytes_per_token": kv_bytes,
        "bytes_per_token": bytes_per_token(subject.projection_bytes, kv_bytes, middle),
        "perplexity": perplexity,
    }
