"""The figure that a limit is on, from a bench document (schema 2), or the reason why there is none."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saap_edge.chat.shares import paired_difference, wilson
from saap_edge.documents.bench import Bench, BenchedArtifact, Comparison
from saap_edge.documents.measured import Ratio, Summary
from saap_edge.errors import SaapError
from saap_edge.gating.budget import METRICS, OUTSIDE_METRICS, Kind, kind_of

if TYPE_CHECKING:
    from saap_edge.targets import Target

__all__ = ["Absent", "Evidence", "Figure", "figure_of", "judged_artifacts"]

# Roles of artifacts that ship, and of those that they are compared with.
_SHIPS, _COMPARED_WITH = ("pruned", "candidate"), ("dense", "baseline")
# Two counts of different runs are compared only where these fields of `conditions` and `machine` agree.
_CONTEXT = ("prompt_tokens", "decode_tokens")
_SAME: dict[str, tuple[str, ...]] = {
    "bytes_per_token": _CONTEXT,
    "perplexity": ("perplexity_text_sha256", "perplexity_window", "perplexity_tokens"),
    "instructions_per_token": ("cpu", "versions", "counter", *_CONTEXT),
}
# Two counts are compared only of one type of KV cache: a smaller or coarser one is not the artifact's doing.
_OF_THE_CACHE = ("bytes_per_token", "kv_bytes_per_token", "perplexity", "instructions_per_token")
# Figures whose interval stands under another name in the document.
_SUSTAINED = ("sustained_pct", "sustained_tok_s")
_WITH_INTERVAL = {"energy_j_per_token": "round_j_per_token"}


class Absent(Exception):
    """There is no figure to judge; the message says why."""


@dataclass(frozen=True)
class Figure:
    """A value and its interval. A figure that was counted has low = value = high."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Evidence:
    """What limits are judged on.

    Attributes:
        bench: the bench document.
        on_target: whether it was measured on the target; None: no target is named.
        target: the target, for predictions.
        baseline: the bench document of another run, for changes.
    """

    bench: Bench
    on_target: bool | None
    target: Target | None = None
    baseline: Bench | None = None


def judged_artifacts(bench: Bench) -> list[BenchedArtifact]:
    """The artifacts that ship. Of a document without any, as of a dense model alone, all artifacts."""
    return [artifact for artifact in bench.artifacts if artifact.role in _SHIPS] or bench.artifacts


def figure_of(metric: str, artifact: BenchedArtifact, evidence: Evidence) -> Figure:
    """The figure of one artifact for a metric. Raises Absent with the reason where there is none."""
    kind = kind_of(metric)
    if metric not in METRICS:
        return _outside(metric, artifact, evidence)
    if kind is Kind.RATIO:
        return _ratio(metric, artifact, evidence)
    if kind is Kind.PREDICTED:
        return _predicted(metric.removeprefix("predicted_"), artifact, evidence)
    if kind is Kind.CHANGE:
        return _change(metric.removesuffix("_change_pct"), artifact, evidence)
    if kind is Kind.SAMPLED:
        return _chat(metric, artifact, evidence)
    if metric == "perplexity_increase_pct":
        dense = _partner(artifact, evidence.bench, "dense")
        if dense is None:
            raise Absent("nothing dense was measured beside it")
        return _percent(_plain("perplexity", artifact), _plain("perplexity", dense))
    return _plain(metric, artifact)


def _outside(metric: str, artifact: BenchedArtifact, evidence: Evidence) -> Figure:
    """The figure of a metric from outside. Raises Absent where it gives none, or lacks an interval that it needs."""
    found, counted = OUTSIDE_METRICS[metric].figure(artifact, evidence), kind_of(metric) in (Kind.COUNTED, Kind.CHANGE)
    if isinstance(found, Figure):
        return found
    if found is not None and not counted:
        raise Absent("it has no interval: without one it decides nothing")
    return _figure(found)


def _plain(metric: str, artifact: BenchedArtifact) -> Figure:
    """A figure that stands in the artifact's metrics."""
    if metric == "file_mib":
        size = _plain("file_bytes", artifact)
        return Figure(*(part / 2**20 for part in (size.value, size.low, size.high)))
    if metric in _SUSTAINED and artifact.metrics.sustained is None:
        raise Absent("it was not decoded for minutes: saap-edge bench BUNDLE --minutes 30")
    found = getattr(artifact.metrics, _WITH_INTERVAL.get(metric, metric))
    if METRICS.get(metric) is Kind.BOARD and isinstance(found, float):
        raise Absent("it was measured once: without an interval it decides nothing")
    return _figure(found)


def _figure(found: Summary | Ratio | float | None) -> Figure:
    """The figure with its interval. Raises Absent where there is none, or it is not finite."""
    if isinstance(found, Summary | Ratio):
        numbers = [found.median if isinstance(found, Summary) else found.ratio, found.low, found.high]
    else:
        numbers = [_number(found)] * 3
    if not all(map(math.isfinite, numbers)):
        raise Absent("there is no such figure")
    return Figure(*numbers)


def _number(found: Any) -> float:
    """The value as a number; NaN for anything else, because a metric from outside may give anything."""
    try:
        return float(found)
    except (TypeError, ValueError):
        return math.nan


def _ratio(metric: str, artifact: BenchedArtifact, evidence: Evidence) -> Figure:
    """The figure of decode_vs_baseline and its like: more than 1 is better, whatever is compared."""
    what, _, role = metric.partition("_vs_")
    name = {"speedup": "decode_tok_s", "decode": "decode_tok_s", "prefill": "prefill_tok_s", "ttft": "ttft_ms"}[what]
    comparison = _comparison(artifact, evidence.bench, role)
    if comparison is not None:
        return _figure(getattr(comparison.ratios, name))
    if role == "baseline" and evidence.baseline is not None:
        raise Absent(
            "timings of another run are not compared: measure both side by side (saap-edge bench NEW --against OLD)"
        )
    raise Absent(f"no {role} was measured beside it")


def _comparison(artifact: BenchedArtifact, bench: Bench, role: str) -> Comparison | None:
    roles = {entry.name: entry.role for entry in bench.artifacts}
    own = (entry for entry in bench.comparisons if entry.candidate == artifact.name)
    return next((entry for entry in own if roles.get(entry.base) == role), None)


def _partner(artifact: BenchedArtifact, bench: Bench, role: str) -> BenchedArtifact | None:
    """The artifact of that role that this one was measured beside; None where there is none."""
    comparison = _comparison(artifact, bench, role)
    names = {entry.name: entry for entry in bench.artifacts}
    return None if comparison is None else names[comparison.base]


def _change(metric: str, artifact: BenchedArtifact, evidence: Evidence) -> Figure:
    """Percent more than the baseline: that of another run where it is given, else the one measured beside it."""
    if evidence.baseline is None:
        beside = _partner(artifact, evidence.bench, "baseline")
        if beside is None:
            raise Absent("there is no baseline: give the report of another run with --baseline")
        return _percent(_plain(metric, artifact), _plain(metric, beside))
    same = [entry for entry in judged_artifacts(evidence.baseline) if entry.format == artifact.format]
    if not same:
        raise Absent(f"the baseline has no {artifact.format}")
    before = next((entry for entry in same if entry.name == artifact.name), same[0])
    after, was = _plain(metric, artifact), _plain(metric, before)
    _check_same(metric, evidence.bench, evidence.baseline)
    _check_same_cache(metric, artifact, before)
    return _percent(after, was)


def _check_same(metric: str, bench: Bench, baseline: Bench) -> None:
    """Raises Absent where the two runs did not count the same thing."""
    for name in _SAME.get(metric, ()):
        now, was = (
            getattr(document.machine if name == "cpu" else document.conditions, name) for document in (bench, baseline)
        )
        if now != was:
            raise Absent(f"the baseline was measured under other conditions: {name} {was} there, {now} here")


def _check_same_cache(metric: str, artifact: BenchedArtifact, before: BenchedArtifact) -> None:
    """Raises Absent where the two were counted with KV caches of two types."""
    now, was = (next((row.type_k for row in entry.metrics.llama_bench), None) for entry in (artifact, before))
    if metric in _OF_THE_CACHE and None not in (now, was) and now != was:
        raise Absent(f"the baseline has its KV cache in {was}, this artifact in {now}: measure both with one --kv")


def _chat(metric: str, artifact: BenchedArtifact, evidence: Evidence) -> Figure:
    """A share of the chat's instructions in percent, or how many points of it were lost against dense."""
    name = "followed" if metric.startswith("chat_followed") else "ended"
    own = _chat_cases(artifact, name)
    if metric.endswith("_pct"):
        cases = [case for case in own if case is not None]
        if not cases:
            raise Absent("there is no such figure")
        return Figure(*(100 * part for part in (sum(cases) / len(cases), *wilson(sum(cases), len(cases)))))
    dense = _partner(artifact, evidence.bench, "dense")
    if dense is None:
        raise Absent("nothing dense was measured beside it")
    both = [(was, now) for was, now in zip(_chat_cases(dense, name), own, strict=False) if None not in (was, now)]
    if not both:
        raise Absent("there is no such figure")
    before, after = zip(*both, strict=True)
    return Figure(*(100 * part for part in paired_difference(before, after)))


def _chat_cases(artifact: BenchedArtifact, name: str) -> list[bool | None]:
    if artifact.metrics.chat is None:
        raise Absent("no chat was measured: bench.chat in the recipe says how many instructions are asked")
    found: list[bool | None] = getattr(artifact.metrics.chat, name)
    return found


def _percent(after: Figure, before: Figure) -> Figure:
    if not before.value:
        raise Absent("there is no such figure")
    change = 100 * (after.value / before.value - 1)
    return Figure(change, change, change)


def _predicted(name: str, artifact: BenchedArtifact, evidence: Evidence) -> Figure:
    """The predicted figure on the target, with the interval of the prediction."""
    if evidence.target is None:
        raise Absent("no target is named: give --target")
    from saap_edge.prediction.predict import predict_benched

    try:
        prediction = predict_benched(artifact, evidence.bench.conditions, evidence.target)
    except SaapError:
        raise Absent("cannot be predicted: not all of its bytes were counted") from None
    estimate = getattr(prediction, name)
    if estimate is None:
        raise Absent(f"cannot be predicted: {prediction.reasons.get(name, 'the board says too little')}")
    return Figure(estimate.value, estimate.low, estimate.high)
