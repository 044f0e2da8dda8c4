"""Predictions as tables, whose titles say that nothing was measured."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from saap_edge.documents.report import Estimate, Report
from saap_edge.report.tables import new_table

__all__ = ["render_prediction", "render_predictions"]

_FIGURES = {
    "decode_tok_s": "decode, tokens/s", "prefill_tok_s": "prefill, tokens/s", "ttft_ms": "time to first token, ms",
    "ram_mib": "memory, MiB",
}  # fmt: skip


def render_prediction(document: dict[str, Any], board: str) -> list[RenderableType]:
    """A table and lines for a prediction; `document` is what `saap-edge predict --json` prints."""
    cost, conditions = document["cost"], document["conditions"]
    title = f"predicted, not measured: {cost['format']} on {board}"
    table = Table(title=escape(title), title_justify="left", title_style="bold", min_width=len(title))
    for column in ("figure", "predicted", "80 % interval"):
        table.add_column(column, justify="left" if column == "figure" else "right", overflow="fold")
    for name, label in _FIGURES.items():
        estimate = document[name]
        if estimate is None:
            table.add_row(label, "unknown", escape(document["reasons"].get(name, "")))
        else:
            table.add_row(label, _short(estimate["value"]), f"{_short(estimate['low'])} to {_short(estimate['high'])}")
    if mapped := document.get("ram_mapped_mib"):
        interval = f"{_short(mapped['low'])} to {_short(mapped['high'])}"
        table.add_row("the same, file mapped", _short(mapped["value"]), interval)
    read = cost["projection_bytes"] + cost["kv_bytes_per_token"] * conditions["context"]
    table.add_row("read per token, MiB", f"{read / 2**20:.1f}", "exact")
    lines: list[RenderableType] = [table]
    lines.append(
        f"  prompt {conditions['prompt_tokens']}, context {conditions['context']}{_cache(conditions)}, "
        f"{conditions['threads']} threads; " + _fits(document)
    )
    lines.append(f"  rests on {escape(document['basis'])}")
    lines += [f"  [yellow]note:[/] {escape(note)}" for note in document["notes"]]
    lines += [f"  source: {escape(source)}" for source in document["sources"]]
    return lines


def render_predictions(report: Report) -> list[RenderableType]:
    """A table with a row for each predicted artifact of a report; nothing where the target is this machine."""
    if not report.predicted:
        return []
    rows = new_table(escape(f"predicted, not measured: {report.target.title}"), "artifact", *_FIGURES.values())
    for entry in report.predicted:
        rows.add_row(escape(entry.name), *(_span(entry[name]) for name in _FIGURES))
    basis = dict.fromkeys(entry.basis for entry in report.predicted)
    return [rows, *(f"  rests on {escape(text)}" for text in basis)]


def _span(estimate: Estimate | None) -> str:
    if estimate is None:
        return "unknown"
    return escape(f"{_short(estimate.value)} [{_short(estimate.low)}, {_short(estimate.high)}]")


def _cache(conditions: dict[str, Any]) -> str:
    return f" of KV cache in {conditions['kv']}" if conditions["kv"] else ""


def _fits(document: dict[str, Any]) -> str:
    size = document["conditions"]["ram_mib"]
    what = f"a board with {size} MiB" if size else "every size of this board"
    if document["fits"]:
        return f"fits into {what}"
    if document["fits"] is False:
        return f"does not fit into {what if size else 'any size of this board'}"
    if document["fits_from_mib"]:
        return f"surely fits from {document['fits_from_mib']} MiB on"
    return "whether it fits is within the interval" if document["ram_mib"] else "whether it fits is unknown"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
