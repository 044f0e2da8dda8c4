"""Verdicts: pass, fail, or inconclusive where the evidence does not decide."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from saap_edge.documents.bench import Bench, BenchedArtifact
from saap_edge.documents.gate import Kind, Verdict, Word
from saap_edge.errors import EXIT_FAILED, EXIT_INCONCLUSIVE, EXIT_OK
from saap_edge.gating.budget import Budget, Limit
from saap_edge.gating.figures import Absent, Evidence, Figure, figure_of, judged_artifacts

if TYPE_CHECKING:
    from saap_edge.targets import Target

__all__ = ["Verdict", "exit_code", "judge"]

_CAUSES = {
    Kind.PREDICTED: "the prediction's error: measure on the board",
    Kind.SAMPLED: "the error of so few instructions: ask more (bench.chat), or allow more",
}


def judge(
    bench: Bench | Mapping[str, Any], budget: Budget, on_target: bool | None, target: Target | None = None,
    baseline: Bench | Mapping[str, Any] | None = None,
) -> list[Verdict]:  # fmt: skip
    """Judge every limit against a bench document (schema 2).

    A limit passes when the whole interval of its figure is inside it, fails when the whole interval is outside, and is
    inconclusive when the interval straddles it. A figure of a machine that is not the target says nothing about the
    board, and is inconclusive; so is a limit on a figure that does not exist.

    Args:
        bench: the bench document.
        budget: the limits.
        on_target: whether it was measured on the target; None: no target is named.
        target: the board, for predictions.
        baseline: bench document of another run, for changes of counted figures.

    Raises SaapError for a document that is damaged or of another version.
    """
    measured = Bench.of(bench)
    evidence = Evidence(measured, on_target, target, None if baseline is None else Bench.of(baseline))
    artifacts = judged_artifacts(measured)
    verdicts = []
    for index, limit in enumerate(budget.limits):
        own = [entry for entry in artifacts if limit.artifact in (None, entry.format)]
        verdicts += [_judge_one(index, limit, entry, evidence) for entry in own]
        if not own:
            verdicts.append(_judge_one(index, limit, None, evidence))
    return verdicts


def exit_code(verdicts: list[Verdict]) -> int:
    """1 if any limit failed, else 3 if any is inconclusive, else 0."""
    found = {verdict.verdict for verdict in verdicts}
    return EXIT_FAILED if "fail" in found else EXIT_INCONCLUSIVE if "inconclusive" in found else EXIT_OK


def _judge_one(index: int, limit: Limit, artifact: BenchedArtifact | None, evidence: Evidence) -> Verdict:
    figure: Figure | None = None
    word: Word = "inconclusive"
    try:
        if artifact is None:
            raise Absent("this artifact was not benched")
        figure = figure_of(limit.metric, artifact, evidence)
        _check_place(limit, evidence.on_target)
        word, reason = _decide(limit, figure)
    except Absent as absent:
        reason = str(absent)
    return Verdict(
        metric=limit.metric, kind=limit.kind, artifact=artifact.format if artifact else limit.artifact,
        name=artifact.name if artifact else None, limit=limit.text, value=figure.value if figure else None,
        low=figure.low if figure else None, high=figure.high if figure else None, verdict=word, reason=reason,
        limit_index=index,
    )  # fmt: skip


def _check_place(limit: Limit, on_target: bool | None) -> None:
    """Raises Absent for a figure that belongs to a machine and was not measured on the target."""
    if limit.kind is Kind.BOARD and not on_target:
        raise Absent(
            "measured on a machine that is not the target" if on_target is False
            else "no target is named, so it is not known whether it was measured there: give --target"
        )  # fmt: skip


def _decide(limit: Limit, figure: Figure) -> tuple[Word, str]:
    floor = -math.inf if limit.min is None else limit.min
    ceiling = math.inf if limit.max is None else limit.max
    exact = figure.low == figure.high
    span = f"{figure.value:.4g}" if exact else f"{figure.value:.4g}, between {figure.low:.4g} and {figure.high:.4g}"
    predicted = limit.kind is Kind.PREDICTED
    span = f"predicted {span}" if predicted else span
    if figure.low >= floor and figure.high <= ceiling:
        return "pass", span
    if figure.high < floor or figure.low > ceiling:
        return "fail", span
    return "inconclusive", f"{span}: the limit lies inside {_CAUSES.get(limit.kind, 'the noise: measure more rounds')}"
