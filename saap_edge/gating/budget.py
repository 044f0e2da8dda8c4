"""The budget: limits, and the metrics that they may be on, by the kind of evidence that each needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from saap_edge.documents.bench import BenchedArtifact
from saap_edge.documents.gate import Kind
from saap_edge.errors import SaapError
from saap_edge.formats import FormatName
from saap_edge.registry import Registry

__all__ = ["METRICS", "OUTSIDE_METRICS", "Budget", "Kind", "Limit", "Metric", "kind_of", "register_metric"]


METRICS: dict[str, Kind] = {
    "decode_tok_s": Kind.BOARD, "prefill_tok_s": Kind.BOARD, "ttft_ms": Kind.BOARD, "itl_p95_ms": Kind.BOARD,
    "load_ms": Kind.BOARD, "peak_rss_mib": Kind.BOARD, "peak_pss_mib": Kind.BOARD, "energy_j_per_token": Kind.BOARD,
    "sustained_pct": Kind.BOARD, "sustained_tok_s": Kind.BOARD,
    "speedup_vs_dense": Kind.RATIO, "prefill_vs_dense": Kind.RATIO, "ttft_vs_dense": Kind.RATIO,
    "decode_vs_baseline": Kind.RATIO, "prefill_vs_baseline": Kind.RATIO, "ttft_vs_baseline": Kind.RATIO,
    "file_mib": Kind.COUNTED, "bytes_per_token": Kind.COUNTED, "kv_bytes_per_token": Kind.COUNTED,
    "parameters": Kind.COUNTED, "perplexity": Kind.COUNTED, "perplexity_increase_pct": Kind.COUNTED,
    "instructions_per_token": Kind.COUNTED,
    "chat_followed_pct": Kind.SAMPLED, "chat_ends_pct": Kind.SAMPLED,
    "chat_followed_drop_points": Kind.SAMPLED, "chat_ends_drop_points": Kind.SAMPLED,
    "predicted_decode_tok_s": Kind.PREDICTED, "predicted_prefill_tok_s": Kind.PREDICTED,
    "predicted_ttft_ms": Kind.PREDICTED, "predicted_ram_mib": Kind.PREDICTED,
    "file_mib_change_pct": Kind.CHANGE, "bytes_per_token_change_pct": Kind.CHANGE,
    "kv_bytes_per_token_change_pct": Kind.CHANGE, "parameters_change_pct": Kind.CHANGE,
    "perplexity_change_pct": Kind.CHANGE, "instructions_per_token_change_pct": Kind.CHANGE,
}  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """A metric from outside.

    Attributes:
        name: its name in budgets.
        kind: what it rests on, and so where it can be judged. BOARD, RATIO and PREDICTED figures need an interval.
        figure: called with (artifact of the bench document, evidence). Returns a number, a `Figure` with an interval,
            or None where the artifact has no such figure.
    """

    name: str
    kind: Kind
    figure: Callable[[BenchedArtifact, Any], Any]


OUTSIDE_METRICS: Registry[Metric] = Registry("metric", "saap_edge.metrics", taken=METRICS)


def register_metric(name: str, kind: Kind, figure: Callable[[BenchedArtifact, Any], Any]) -> None:
    """Add a metric that budgets may limit; see `Metric`. Raises SaapError where the name is one of saap-edge's own.

    An installed package adds one by an entry point of the group `saap_edge.metrics` that names a `Metric`.
    """
    OUTSIDE_METRICS.register(Metric(name, kind, figure), replace=True)


def kind_of(metric: str) -> Kind:
    """What a metric rests on, of this package or from outside. Raises KeyError for an unknown one.

    >>> str(kind_of("decode_tok_s")), str(kind_of("file_mib"))
    ('on the board', 'counted')
    """
    return METRICS[metric] if metric in METRICS else OUTSIDE_METRICS[metric].kind


Bound = Annotated[float, Field(allow_inf_nan=False)]


class Limit(BaseModel):
    """One limit. Without `artifact`, it holds for all artifacts that ship (pruned, candidate), not dense or baseline.

    >>> Limit(metric="decode_tok_s", min=8).text
    '>= 8'
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str
    min: Bound | None = None
    max: Bound | None = None
    artifact: FormatName | None = None

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        try:
            return OUTSIDE_METRICS.check(metric)
        except SaapError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _bounded(self) -> Limit:
        if self.min is None and self.max is None:
            raise ValueError(f"{self.metric} needs a min or a max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"{self.metric}: min {self.min:g} is above max {self.max:g}")
        return self

    @property
    def kind(self) -> Kind:
        """What its figure rests on."""
        return kind_of(self.metric)

    @property
    def text(self) -> str:
        """The bounds as people write them, as ">= 8"."""
        parts = [f">= {self.min:g}" if self.min is not None else "", f"<= {self.max:g}" if self.max is not None else ""]
        return " and ".join(part for part in parts if part)


class Budget(BaseModel):
    """All limits. In a document, `limits` is a list or a mapping.

    >>> budget = Budget.model_validate({"limits": {"speedup_vs_dense": {"min": 1.1}, "ttft_ms": {"max": 500}}})
    >>> [(limit.metric, limit.text) for limit in budget.limits]
    [('speedup_vs_dense', '>= 1.1'), ('ttft_ms', '<= 500')]
    """

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
