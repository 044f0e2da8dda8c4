"""Figures of a bench document: medians and ratios with their intervals, and the rows that llama-bench writes too."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from saap_edge.documents.base import Number, Part, Real

__all__ = [
    "Depth", "DepthRatio", "LlamaBenchRow", "Percentiles", "Ratio", "Ratios", "Summary", "Sustained", "Window",
]  # fmt: skip


class Summary(Part):
    """A figure that was measured several times, in the unit that its name ends with."""

    median: Real = Field(description="median of the samples")
    low: Real = Field(description="lower end of the median's confidence interval")
    high: Real = Field(description="upper end of the median's confidence interval")
    spread: Real = Field(default=0.0, description="interquartile range over the median, no unit")
    samples: list[Real] = Field(default_factory=list, description="every sample, in the order it was taken")


class Ratio(Part):
    """Two artifacts measured by turns: more than 1 says that the candidate is better."""

    ratio: Real = Field(description="median of the rounds' ratios, no unit")
    low: Real = Field(description="lower end of its confidence interval, no unit")
    high: Real = Field(description="upper end of its confidence interval, no unit")
    confidence: Real = Field(default=0.95, description="how likely the interval holds the truth, 0 to 1")
    rounds: int = Field(default=0, description="number of rounds it is from")


class Ratios(Part):
    """What a comparison is about."""

    decode_tok_s: Ratio = Field(description="ratio of decode rates")
    prefill_tok_s: Ratio = Field(description="ratio of prefill rates")
    ttft_ms: Ratio = Field(description="ratio of times to the first token, base over candidate")


class Percentiles(Part):
    """Time between two tokens, over all steps of all rounds."""

    p50: Real = Field(description="median, ms")
    p95: Real = Field(description="95th percentile, ms")
    p99: Real = Field(description="99th percentile, ms")


class Depth(Part):
    """Decoding when the sequence is already so long."""

    context: int = Field(description="tokens that the sequence has before decoding")
    decode_tok_s: Summary = Field(description="decode rate, tokens/s")
    tok_per_cpu_s: Number = Field(default=None, description="tokens decoded per second of CPU time of all threads")
    peak_rss_mib: Number = Field(default=None, description="highest resident memory of such a process, MiB")
    pss_mib: Number = Field(
        default=None, description="memory with shared pages counted in part, MiB; null: not told here"
    )
    kv_bytes: int = Field(description="keys and values of that many tokens, bytes")
    bytes_per_token: int | None = Field(default=None, description="what decoding a token reads from memory, bytes")


class DepthRatio(Part):
    """A comparison at one depth."""

    context: int = Field(description="tokens that the sequence has before decoding")
    decode_tok_s: Ratio = Field(description="ratio of decode rates")
    ideal_decode_ratio: Real = Field(description="ratio of the bytes that decoding a token reads, no unit")


class Window(Part):
    """A stretch of a run that decodes for minutes."""

    at_s: float = Field(description="its beginning, seconds from the beginning of the run")
    decode_tok_s: float = Field(description="decode rate, tokens/s")
    mhz: Number = Field(default=None, description="highest clock of any CPU, MHz; null: not told")
    temperature_c: Number = Field(default=None, description="hottest zone, degrees Celsius; null: not told")
    cpu_share: Number = Field(default=None, description="share of the threads' time in which they had a CPU")


class Sustained(Part):
    """Decoding without a pause for minutes: the last part of the time against the first."""

    seconds: float = Field(description="how long, s")
    blocks: int = Field(description="number of timed stretches that the figures are from")
    part_s: float = Field(description="length of the first part, and at most of the last, s")
    pct: Summary = Field(description="last speed in percent of the first; the interval holds in 95 % of cases")
    first_tok_s: Summary = Field(description="decode rate of the first part, tokens/s")
    last_tok_s: Summary = Field(description="decode rate of the last part, tokens/s")
    first_mhz: Number = Field(default=None, description="clock in the first part, MHz; null: not told")
    last_mhz: Number = Field(default=None, description="clock in the last part, MHz; null: not told")
    first_temperature_c: Number = Field(default=None, description="temperature in the first part, degrees Celsius")
    last_temperature_c: Number = Field(default=None, description="temperature in the last part, degrees Celsius")
    hottest_c: Number = Field(default=None, description="highest temperature, degrees Celsius; null: not told")
    throttled: bool | None = Field(
        default=None, description="the board slowed itself down, by its own word or its clock; null: it tells neither"
    )
    course: list[Window] = Field(default_factory=list, description="speed and state over the time")


class LlamaBenchRow(Part):
    """A row with the field names and definitions of llama-bench's JSON."""

    model_filename: str = Field(description="name of the artifact's file or folder")
    model_n_params: int | None = Field(default=None, description="parameters of the model; null: unknown")
    n_threads: int = Field(description="threads")
    type_k: Any = Field(default=None, description="type of the cached keys; null: unknown")
    type_v: Any = Field(default=None, description="type of the cached values; null: unknown")
    use_mmap: bool | None = Field(default=None, description="the file is mapped, not read; null: unknown")
    n_prompt: int = Field(description="tokens of the prompt that is timed")
    n_gen: int = Field(description="tokens decoded that are timed")
    n_depth: int = Field(description="tokens in the cache before")
    avg_ns: int = Field(description="mean time of a repetition, ns")
    stddev_ns: int = Field(description="its sample standard deviation, ns")
    avg_ts: Real = Field(description="mean rate, tokens/s")
    stddev_ts: Real = Field(description="its sample standard deviation, tokens/s")
    samples_ns: list[int] = Field(description="time of every repetition, ns")
    samples_ts: list[Real] = Field(description="rate of every repetition, tokens/s")
