"""The bench document (schema 2) from samples: figures of every artifact, and ratios of those that are compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from saap_edge.documents.bench import Bench, BenchedArtifact, Comparison, Conditions, Machine, Metrics, Pair, Runtime
from saap_edge.documents.measured import LlamaBenchRow, Percentiles, Ratio, Ratios, Summary
from saap_edge.measuring.conditions import Subject
from saap_edge.measuring.statistics import CONFIDENCE, paired_ratio, scatter, summary
from saap_edge.prediction.cost import bytes_per_token

__all__ = [
    "DISTURBED", "NOISY", "Samples", "compared", "counts", "merge_documents", "now_utc", "runtime_of", "summary_of",
    "write_document",
]  # fmt: skip

NOISY = 0.05  # people are warned of rounds that scatter by more than this share
DISTURBED = 0.9  # and of threads that had a CPU for less than this share of their time
NS = 1_000_000_000


@dataclass
class Samples:
    """What was measured of one artifact.

    Attributes:
        ttft_s: time to the first token, s, of every round.
        steps_s, cpu_s: seconds and CPU seconds (all threads) of every step, of every round.
        load_s: seconds of loading, of every fresh process.
        peak_rss, peak_pss, held: bytes of memory, of every fresh process.
        joules: energy of decoding, J, of every round; None where the meter did not tell.
        perplexity: no unit; None: not measured.
        instructions: instructions that decoding a token executes; None: not counted.
        whole: decoding was timed as a whole: `steps_s` holds means, and `cpu_s` nothing.
    """

    ttft_s: list[float] = field(default_factory=list)
    steps_s: list[list[float]] = field(default_factory=list)
    cpu_s: list[list[float]] = field(default_factory=list)
    load_s: list[float] = field(default_factory=list)
    peak_rss: list[int] = field(default_factory=list)
    peak_pss: list[int] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    joules: list[float | None] = field(default_factory=list)
    perplexity: float | None = None
    instructions: float | None = None
    whole: bool = False

    def add(self, timing: Mapping[str, Any], joules: float | None = None) -> None:
        """Add a round, as `Worker.time` returns it."""
        self.ttft_s.append(timing["ttft_s"])
        self.steps_s.append(timing["decode_s"])
        self.whole = timing.get("whole", False)
        if not self.whole:
            self.cpu_s.append(timing["decode_cpu_s"])
        self.joules.append(joules)

    def add_load(self, seconds: float, memory: Mapping[str, int | None]) -> None:
        """Add a fresh process: its seconds of loading, and its memory."""
        self.load_s.append(seconds)
        self.peak_rss.append(int(memory["peak"] or 0))
        if memory.get("pss"):
            self.peak_pss.append(int(memory["pss"] or 0))
        if memory.get("held"):
            self.held.append(int(memory["held"] or 0))

    @property
    def joules_per_token(self) -> float | None:
        """Joules per token over all rounds; None where the meter did not tell of every round."""
        tokens = sum(map(len, self.steps_s))
        known = [joules for joules in self.joules if joules is not None]
        return sum(known) / tokens if tokens and len(known) == len(self.steps_s) else None

    @property
    def round_joules(self) -> list[float]:
        """Joules per token of every round; empty where the meter did not tell of every round."""
        known = [joules for joules in self.joules if joules is not None]
        whole = known and len(known) == len(self.steps_s)
        return [j / len(steps) for j, steps in zip(known, self.steps_s, strict=True)] if whole else []

    @property
    def step_s(self) -> list[float]:
        """The median step of every round, in seconds."""
        return [float(np.median(steps)) for steps in self.steps_s]


def write_document(
    machine: dict[str, Any], conditions: dict[str, Any], subjects: Sequence[Subject],
    loaded: Mapping[str, Mapping[str, Any]], samples: Mapping[str, Samples], comparisons: Sequence[tuple[str, str]],
) -> Bench:  # fmt: skip
    """The bench document from samples.

    Args:
        machine, conditions: sections of the document.
        subjects: the artifacts.
        loaded: how each engine describes its artifact, by the subject's name.
        samples: what was measured, by the subject's name.
        comparisons: (base, candidate) names.

    Intervals of figures from rounds have the confidence `conditions["confidence"]`, those from fresh processes
    CONFIDENCE.
    """
    told = Conditions.model_validate(conditions)
    places = any(subject.build.elsewhere for subject in subjects)
    artifacts = [
        _artifact(subject, loaded[subject.name], samples[subject.name], told).model_copy(
            update={"runtime": runtime_of(loaded[subject.name], places)}
        )
        for subject in subjects
    ]  # fmt: skip
    read = {artifact.name: artifact.metrics.counted("bytes_per_token") for artifact in artifacts}
    return Bench(
        measured_at=now_utc(),
        machine=Machine.model_validate(machine),
        conditions=told,
        artifacts=artifacts,
        comparisons=[
            Comparison(
                base=base,
                candidate=candidate,
                ratios=_ratios(samples[base], samples[candidate], told.confidence or CONFIDENCE),
                ideal_decode_ratio=read[base] / read[candidate],
            )
            for base, candidate in comparisons
        ],
    )


def merge_documents(documents: Sequence[Bench]) -> Bench:
    """Join documents that were measured one after the other, under the same conditions, into one."""
    first, last = documents[0], documents[-1]
    warm_ups = [document.conditions.warm_up for document in documents if document.conditions.warm_up]
    changes: dict[str, Any] = {"rounds": max(document.conditions.rounds or 0 for document in documents)}
    if warm_ups:
        rounds, stable = max(each.rounds for each in warm_ups), all(each.stable for each in warm_ups)
        changes["warm_up"] = warm_ups[0].model_copy(update={"rounds": rounds, "stable": stable})
    return Bench(
        measured_at=last.measured_at,
        machine=first.machine.model_copy(update={"after": last.machine.after}),
        conditions=first.conditions.model_copy(update=changes),  # each comparison tells its own rounds
        artifacts=[artifact for document in documents for artifact in document.artifacts],
        comparisons=[comparison for document in documents for comparison in document.comparisons],
    )


def now_utc() -> str:
    """The time, to the second, as documents have it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def compared(document: Bench) -> list[Pair]:
    """The comparisons with the artifacts themselves in place of their names."""
    return document.pairs()


def _ratios(base: Samples, candidate: Samples, confidence: float) -> Ratios:
    """Ratios base over candidate of times: more than 1 says that the candidate is better."""
    ttft = Ratio(**paired_ratio(base.ttft_s, candidate.ttft_s, confidence))
    decode = Ratio(**paired_ratio(base.step_s, candidate.step_s, confidence))
    return Ratios(decode_tok_s=decode, prefill_tok_s=ttft, ttft_ms=ttft)


def _artifact(
    subject: Subject, loaded: Mapping[str, Any], samples: Samples, conditions: Conditions
) -> BenchedArtifact:  # fmt: skip
    prompt, decode = conditions.prompt_tokens, conditions.decode_tokens
    threads, confidence = conditions.threads or 1, conditions.confidence or CONFIDENCE
    rounds_ms = [[1000 * seconds for seconds in steps] for steps in samples.steps_s]
    steps_ms = [] if samples.whole else [step for steps in rounds_ms for step in steps]
    tails = [] if samples.whole else [float(np.percentile(steps, 95)) for steps in rounds_ms]
    metrics = Metrics(
        decode_tok_s=summary_of([1 / seconds for seconds in samples.step_s], confidence),
        prefill_tok_s=summary_of([prompt / seconds for seconds in samples.ttft_s], confidence),
        ttft_ms=summary_of([1000 * seconds for seconds in samples.ttft_s], confidence),
        itl_ms=_percentiles(steps_ms),
        itl_p95_ms=summary_of(tails, confidence),
        load_ms=summary_of([1000 * seconds for seconds in samples.load_s]),
        peak_rss_mib=summary_of([peak / 2**20 for peak in samples.peak_rss]),
        peak_pss_mib=summary_of([peak / 2**20 for peak in samples.peak_pss]),
        held_mib=summary_of([held / 2**20 for held in samples.held]),
        huge_pages_mib=loaded["huge_pages_bytes"] / 2**20 if "huge_pages_bytes" in loaded else None,
        prepared=loaded.get("prepared"),
        **counts(subject, loaded, prompt + decode // 2),
        perplexity=samples.perplexity,
        energy_j_per_token=samples.joules_per_token,
        round_j_per_token=summary_of(samples.round_joules, confidence),
        instructions_per_token=samples.instructions,
        noise=scatter(samples.step_s),
        cpu_share=None if samples.whole else sum(map(sum, samples.cpu_s)) / sum(map(sum, samples.steps_s)) / threads,
        llama_bench=_llama_bench(subject, loaded, samples, conditions),
    )
    return BenchedArtifact(
        name=subject.name, role=subject.role, format=subject.format, engine=subject.engine, model=subject.model,
        metrics=metrics,
    )  # fmt: skip


def counts(subject: Subject, loaded: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """Metrics that were counted; what a token reads with `depth` tokens in the cache."""
    kv_bytes = int(loaded["kv_bytes_per_token"])
    return {
        "file_bytes": subject.file_bytes, "projection_bytes": subject.projection_bytes, "kv_bytes_per_token": kv_bytes,
        "bytes_per_token": bytes_per_token(subject.projection_bytes, kv_bytes, depth),
        "parameters": subject.parameters,
    }  # fmt: skip


def _percentiles(steps_ms: Sequence[float]) -> Percentiles | None:
    """None where single steps were not timed."""
    if not steps_ms:
        return None
    p50, p95, p99 = (float(np.percentile(steps_ms, share)) for share in (50, 95, 99))
    return Percentiles(p50=p50, p95=p95, p99=p99)


def runtime_of(loaded: Mapping[str, Any], places: bool) -> Runtime:
    """The build that ran an artifact; where it lies only if a build was named, else paths of this machine would stand
    in every document."""
    told = loaded.get("runtime", {})
    return Runtime.model_validate(told if places else {**told, "program": None, "module": None})


def summary_of(samples: Sequence[float], confidence: float = CONFIDENCE) -> Summary | None:
    """None where nothing was measured."""
    return Summary(**summary(samples, confidence)) if samples else None


def _llama_bench(
    subject: Subject, loaded: Mapping[str, Any], samples: Samples, conditions: Conditions
) -> list[LlamaBenchRow]:
    """Rows with the field names of llama-bench's JSON: pp (prefill) and tg (decode, at the depth of the prompt)."""
    prompt, decode = conditions.prompt_tokens, conditions.decode_tokens
    common = {
        "model_filename": subject.path.name, "model_n_params": loaded.get("parameters", subject.parameters),
        "n_threads": conditions.threads, "type_k": loaded.get("kv_type"), "type_v": loaded.get("kv_type"),
        "use_mmap": loaded.get("mapped"),
    }  # fmt: skip
    prefill = _row(prompt, [round(NS * seconds) for seconds in samples.ttft_s])
    decoding = _row(decode, [round(NS * sum(steps)) for steps in samples.steps_s])
    return [
        LlamaBenchRow.model_validate(common | {"n_prompt": prompt, "n_gen": 0, "n_depth": 0} | prefill),
        LlamaBenchRow.model_validate(common | {"n_prompt": 0, "n_gen": decode, "n_depth": prompt} | decoding),
    ]


def _row(tokens: int, nanoseconds: list[int]) -> dict[str, Any]:
    rates = [tokens * NS / sample for sample in nanoseconds]
    return {
        "avg_ns": round(float(np.mean(nanoseconds))), "stddev_ns": round(_deviation(nanoseconds)),
        "avg_ts": float(np.mean(rates)), "stddev_ts": _deviation(rates), "samples_ns": nanoseconds, "samples_ts": rates,
    }  # fmt: skip


def _deviation(samples: Sequence[float]) -> float:
    """The sample standard deviation, as llama-bench computes it."""
    deviation = float(np.std(samples, ddof=1)) if len(samples) > 1 else 0.0
    return deviation if math.isfinite(deviation) else 0.0
