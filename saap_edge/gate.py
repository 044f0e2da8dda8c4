"""The gate: limits on measurements, and a verdict for each that a noisy runner cannot flip unnoticed."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from saap_edge.errors import EXIT_FAILED, EXIT_INCONCLUSIVE, EXIT_OK

__all__ = ["Budget", "Format", "Limit", "Verdict", "exit_code", "judge"]

Metric = Literal[
    "decode_tok_s", "prefill_tok_s", "ttft_ms", "load_ms", "peak_rss_mib", "file_mib", "kv_bytes_per_token",
    "perplexity",
    "perplexity_increase_pct", "speedup_vs_dense",
]  # fmt: skip
Format = Literal[
    "gguf-f32", "gguf-f16", "gguf-bf16", "gguf-q8_0", "gguf-q4_0", "gguf-q4_1", "onnx-fp32", "onnx-fp16", "onnx-int4",
    "onnx-int4-full", "onnx-int8", "onnx-optimum", "gguf-q6_k", "gguf-q5_k_m", "gguf-q4_k_m", "gguf-q4_k_s",
    "gguf-q3_k_m", "gguf-q3_k_s", "gguf-q2_k", "gguf-iq4_nl", "gguf-iq4_xs", "gguf-iq3_m", "gguf-iq3_s", "gguf-iq3_xxs",
    "gguf-iq2_m", "gguf-iq2_s", "gguf-iq2_xs", "gguf-iq2_xxs",
]  # fmt: skip

# Absolute figures that belong to the machine they were taken on.
_OF_THE_MACHINE = ("decode_tok_s", "prefill_tok_s", "ttft_ms", "load_ms", "peak_rss_mib")


class Limit(BaseModel):
    """One limit. Without `artifact` it holds for every benched artifact."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: Metric
    min: float | None = None
    max: float | None = None
    artifact: Format | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Limit:
        if self.min is None and self.max is None:
            raise ValueError(f"{self.metric} needs a min or a max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"{self.metric}: min {self.min:g} is above max {self.max:g}")
        return self

    @property
    def text(self) -> str:
        """As people write it."""
        parts = [f">= {self.min:g}" if self.min is not None else "", f"<= {self.max:g}" if self.max is not None else ""]
        return " and ".join(part for part in parts if part)


class Budget(BaseModel):
    """Limits. Besides a list, `limits` may be a mapping: `{speedup_vs_dense: {min: 1.1}, ttft_ms: {max: 500}}`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limits: tuple[Limit, ...] = Field(default=(), description="what must hold")

    @model_validator(mode="before")
    @classmethod
    def _mapping(cls, document: Any) -> Any:
        limits = document.get("limits") if isinstance(document, dict) else None
        if isinstance(limits, dict):
            rows = [{"metric": name, **(bounds if isinstance(bounds, dict) else {})} for name, bounds in limits.items()]
            return document | {"limits": rows}
        return document


class Verdict(BaseModel):
    """What became of one limit on one artifact. `low` and `high` bound timed values (95 % confidence)."""

    metric: str
    artifact: str | None
    limit: str
    value: float | None
    low: float | None
    high: float | None
    verdict: Literal["pass", "fail", "inconclusive"]
    reason: str


def judge(bench: dict[str, Any], budget: Budget, on_target: bool) -> list[Verdict]:
    """Judge every limit against a bench document.

    A timed value passes when its whole confidence interval is inside the limit, fails when it is all outside, and is
    inconclusive when it straddles. Figures of the machine measured elsewhere than on the target (`on_target` False)
    are inconclusive: they say nothing about the board. So is a limit on something that was not measured.
    """
    pairs = _pairs(bench)
    verdicts = []
    for limit in budget.limits:
        names: list[str | None] = [limit.artifact] if limit.artifact else [*pairs] or [None]
        for artifact in names:
            verdicts.append(_judge_one(limit, artifact, pairs.get(artifact or ""), on_target))
    return verdicts


def _pairs(bench: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By format: metrics of what is judged and of what it is compared with, and their ratios."""
    metrics = {entry["name"]: entry["metrics"] for entry in bench["artifacts"]}
    compared = {entry["candidate"]: entry for entry in bench["comparisons"]}
    return {
        entry["format"]: {
            "pruned": entry["metrics"],
            "dense": metrics.get(compared.get(entry["name"], {}).get("base"), {}),
            "ratios": compared.get(entry["name"], {}).get("ratios", {}),
        }
        for entry in bench["artifacts"]
        if entry["role"] in ("pruned", "candidate")
    }


def exit_code(verdicts: list[Verdict]) -> int:
    """1 if any limit failed, else 3 if any is inconclusive, else 0."""
    found = {verdict.verdict for verdict in verdicts}
    return EXIT_FAILED if "fail" in found else EXIT_INCONCLUSIVE if "inconclusive" in found else EXIT_OK


def _judge_one(limit: Limit, artifact: str | None, pair: dict[str, Any] | None, on_target: bool) -> Verdict:
    value, low, high = (None, None, None) if pair is None else _figures(pair, limit.metric)
    verdict, reason = _decide(limit, value, low, high)
    if pair is None:
        reason = "this artifact was not benched"
    elif value is not None and limit.metric in _OF_THE_MACHINE and not on_target:
        verdict, reason = "inconclusive", "measured on this machine, which is not the target"
    return Verdict(
        metric=limit.metric,
        artifact=artifact,
        limit=limit.text,
        value=value,
        low=low,
        high=high,
        verdict=verdict,
        reason=reason,
    )


def _decide(
    limit: Limit, value: float | None, low: float | None, high: float | None
) -> tuple[Literal["pass", "fail", "inconclusive"], str]:
    if value is None or low is None or high is None:
        return "inconclusive", "there is no such figure"
    floor = -math.inf if limit.min is None else limit.min
    ceiling = math.inf if limit.max is None else limit.max
    span = f"{value:.4g}" if low == high else f"{value:.4g}, between {low:.4g} and {high:.4g}"
    if low >= floor and high <= ceiling:
        return "pass", span
    if high < floor or low > ceiling:
        return "fail", span
    return "inconclusive", f"{span}: the limit lies inside the noise, measure more rounds"


def _figures(pair: dict[str, Any], metric: str) -> tuple[float | None, float | None, float | None]:
    """(value, low, high); low and high equal the value where nothing was timed, all None where there is no figure."""
    pruned, dense = pair["pruned"], pair["dense"]
    try:
        if metric == "speedup_vs_dense":
            entry = pair["ratios"]["decode_tok_s"]
            figures = [entry["ratio"], entry["low"], entry["high"]]
        elif metric == "perplexity_increase_pct":
            figures = [100 * (pruned["perplexity"] / dense["perplexity"] - 1)] * 3
        elif metric == "file_mib":
            figures = [pruned["file_bytes"] / 2**20] * 3
        elif isinstance(pruned[metric], dict):
            figures = [pruned[metric]["median"], pruned[metric]["low"], pruned[metric]["high"]]
        else:
            figures = [pruned[metric]] * 3
        numbers = [float(figure) for figure in figures]
    except (KeyError, TypeError, ZeroDivisionError):
        return None, None, None
    return (numbers[0], numbers[1], numbers[2]) if all(map(math.isfinite, numbers)) else (None, None, None)
