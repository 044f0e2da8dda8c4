"""The draft document as tables for the terminal."""

from __future__ import annotations

from rich.console import RenderableType
from rich.markup import escape

from saap_edge.documents.draft import Draft, DraftKind, DraftMeasured, DraftResult, Interval
from saap_edge.documents.measured import Ratio
from saap_edge.report.tables import new_table

__all__ = ["render_draft"]

_SAYS = {
    "pays": "[green]pays on this board[/]", "does not pay": "[yellow]does not pay on this board[/]",
    "undecided": "[yellow]undecided[/]",
}  # fmt: skip


def render_draft(document: Draft, board: str) -> list[RenderableType]:
    """Tables and lines for drafts of a model; `board` is the target's title."""
    told = document.conditions
    lines: list[RenderableType] = []
    for result in document.drafts:
        lines += _result(result, document)
        lines.append(
            f"  {escape(result.draft.name)}, {escape(board)}: {_SAYS[result.verdict]}: {escape(result.reason)}"
        )
    lines.append(
        f"  answers of {escape(document.model.name)}: {told.prompts} prompts a kind, at most {told.tokens} tokens; "
        f"{told.target_threads} threads on the board, {told.threads} here"
    )
    return lines + [f"  [yellow]note:[/] {escape(note)}" for note in document.notes]


def _result(result: DraftResult, document: Draft) -> list[RenderableType]:
    costs = result.costs
    title = f"{result.draft.name}, which reads {result.bytes_ratio:.2f} of the bytes a token of {document.model.name}"
    table = new_table(
        escape(title), "answers", "tokens", "accepted [95 %]", "drafted", "tokens a pass [95 %]", "speed-up, predicted"
    )
    for kind in result.kinds:
        table.add_row(kind.kind, str(kind.positions), _span(kind.acceptance), *_at(kind, result.gamma))
    lines: list[RenderableType] = [table]
    if costs:
        lines.append(
            f"  predicted costs, in tokens of the model: {costs.draft:.2f} a token of the draft, "
            f"{_span(costs.further)} each further token of a verification"
        )
    return lines + (_measured(result.measured) if result.measured else [])


def _at(kind: DraftKind, gamma: int) -> tuple[str, str, str]:
    """The best draft length of a kind, or the given one where nothing is predicted."""
    known = [each for each in kind.lengths if each.predicted]
    best = max(known, key=lambda each: each.predicted.value if each.predicted else 0.0, default=None)
    length = best or kind.lengths[gamma - 1]
    return str(length.gamma), _span(length.tokens_per_pass), _span(length.predicted)


def _measured(found: DraftMeasured) -> list[RenderableType]:
    batches = ", ".join(f"{batch.tokens}: {batch.cost.ratio:.2f}" for batch in found.batches)
    lines: list[RenderableType] = [
        f"  measured here: a token of the draft costs {_ratio(found.draft)}; tokens at once: {batches}",
        f"  expected from these costs with {found.gamma} drafted: {found.expected:.2f} times the speed",
    ]
    if found.speedup and found.speedup_cpu:
        lines.append(
            f"  measured: {_ratio(found.speedup)} times the speed, {_ratio(found.speedup_cpu)} in CPU time; all "
            f"answers are the model's own ({found.passes} passes, {found.counted_passes} counted)"
        )
    else:
        lines.append(f"  measured: {len(found.differences)} answers are not the model's own: no speed-up is given")
    return lines


def _ratio(ratio: Ratio) -> str:
    return escape(f"{ratio.ratio:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]")


def _span(interval: Interval | None) -> str:
    return "-" if interval is None else escape(f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]")
