"""Chats for the terminal: what follows its instruction, ends, repeats itself and agrees, artifacts side by side."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from rich.markup import escape

from saap_edge.report.tables import new_table

__all__ = ["render_chat"]

_ROWS = (
    ("followed", "instructions followed % [95 %]"), ("ends", "answers that end by themselves % [95 %]"),
    ("repeats", "answers that repeat themselves % [95 %]"), ("agreement", "tokens as the dense model's % ± error"),
)  # fmt: skip


def render_chat(chats: list[dict[str, Any]]) -> list[RenderableType]:
    """A table of figures, one of the kinds of checks, and lines on the conditions."""
    first, names = chats[0], [entry["artifact"] for entry in chats]
    tokens = f"{first['n']} instructions of {first['instructions']}, answers of at most {first['answer_tokens']} tokens"
    table = new_table(f"chat: {tokens}", "figure", *names)
    for key, label in _ROWS:
        if any(entry[key] for entry in chats):
            table.add_row(label, *(_percent(entry[key]) for entry in chats))
    for key, label in (("followed", "instructions lost"), ("ends", "ends lost")):
        if any(entry["lost"] for entry in chats):
            table.add_row(f"{label} against dense, points [95 %]", *(_lost(entry, key) for entry in chats))
    kinds = new_table("checks that hold, by kind, %", "check", "n", *names)
    for kind in first["checks"]:
        shares = [entry["checks"].get(kind) for entry in chats]
        kinds.add_row(kind, str(first["checks"][kind]["n"]), *(_percent(found, error=False) for found in shares))
    lines = [f"  {escape(first['instructions'])}: sha256 {first['instructions_sha256'][:12]}"]
    for entry in chats:
        told = f"{entry['engine']} {entry['version']}, template {entry['template_sha256']}, {entry['tokens']} tokens"
        lines.append(f"  {escape(entry['artifact'])}: {told}, {entry['seconds']:.0f} s")
        if entry["skipped"]:
            lines.append(f"    {entry['skipped']} tool calls are left out: the chat template takes no tools")
        if entry["template_writes_date"]:
            lines.append("    the chat template writes today's date: answers may be others tomorrow")
    return [table, kinds, *lines]


def _percent(found: dict[str, Any] | None, error: bool = True) -> str:
    """A share in percent, with its interval; of a mean, which has none, with its standard error."""
    if not found or found["share"] is None:
        return "-"
    value = f"{100 * found['share']:.1f}"
    if error and "low" in found:
        return f"{value} \\[{100 * found['low']:.1f}, {100 * found['high']:.1f}]"
    return f"{value} ± {100 * found['stderr']:.1f}" if error and found["stderr"] is not None else value


def _lost(entry: dict[str, Any], key: str) -> str:
    found = (entry["lost"] or {}).get(key)
    if not found:
        return "-"
    return f"{100 * found['difference']:.1f} \\[{100 * found['low']:.1f}, {100 * found['high']:.1f}]"
