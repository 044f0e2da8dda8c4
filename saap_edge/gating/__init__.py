"""The gate: limits on figures, and a verdict on each. Noise makes a verdict inconclusive, not wrong."""

from saap_edge.gating.budget import METRICS, Budget, Kind, Limit, Metric, register_metric
from saap_edge.gating.judge import Verdict, exit_code, judge

__all__ = ["METRICS", "Budget", "Kind", "Limit", "Metric", "Verdict", "exit_code", "judge", "register_metric"]
