"""Verdicts for GitHub Actions: a table for the step summary, and annotations at the lines of the budget file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from saap_edge.documents.gate import Gate, Verdict
from saap_edge.report.data import overall

__all__ = ["cell", "render_annotations", "render_markdown"]

_MARKS = {"pass": "✅ pass", "fail": "❌ fail", "inconclusive": "⚠️ inconclusive"}


def render_markdown(gate: Gate) -> str:
    """Markdown with a heading, a table with a row for each verdict, and where it was measured."""
    machine, conditions = gate.machine, gate.conditions
    cache = f", KV cache in {conditions.kv}" if conditions.kv else ""
    lines = [
        f"## saap-edge gate: {overall(gate)}", "",
        "| verdict | limit | artifact | figure | how |", "|---|---|---|---|---|",
        *(_row(verdict) for verdict in gate.verdicts), "",
        f"{cell(gate.model or 'model unknown')}, measured on {cell(machine.cpu)}, {machine.cores} cores, "
        f"{conditions.threads or '?'} threads, prompt {conditions.prompt_tokens} tokens, "
        f"{conditions.rounds or '?'} rounds{cache}; target: {cell(gate.target or 'none named')}.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def render_annotations(gate: Gate, budget: Path | None, lines: Sequence[int]) -> list[str]:
    """Workflow commands, one for each verdict that is no pass: an error for a failure, else a warning.

    Args:
        gate: the gate document.
        budget: path of the file with the limits in the repository; None: they are in no file.
        lines: the line of each limit in that file.
    """
    commands = []
    for entry in gate.verdicts:
        if entry.verdict == "pass":
            continue
        command = "error" if entry.verdict == "fail" else "warning"
        place = {"file": str(budget), "line": str(lines[entry.limit_index])} if budget else {}
        properties = {**place, "title": f"saap-edge gate: {entry.verdict}"}
        told = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
        subject = f"{entry.metric} {entry.limit} on {entry.name or entry.artifact or 'nothing measured'}"
        commands.append(f"::{command} {told}::{_data(subject + ': ' + entry.reason)}")
    return commands


def _row(entry: Verdict) -> str:
    cells = (
        _MARKS[entry.verdict], f"`{entry.metric} {entry.limit}`", cell(entry.name or entry.artifact or "-"),
        cell(entry.reason), entry.kind,
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def cell(text: str) -> str:
    """The text, escaped so that it neither ends a cell nor is read as HTML."""
    for character, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;")):
        text = text.replace(character, written)
    return " ".join(text.split())


def _data(text: str) -> str:
    """The message, escaped as the runner's own toolkit does it."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
