"""A history for people: one self-contained page, and a table for the terminal."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import RenderableType
from rich.markup import escape

from saap_edge.documents.history import History, HistoryPoint
from saap_edge.documents.measured import Ratio
from saap_edge.report.tables import new_table, number
from saap_edge.report.terminal import VERDICT_COLOURS

__all__ = ["history_page", "render_history"]

SHOWN = 40  # figures in the terminal, the newest


def history_page(history: History) -> str:
    """The page, as text. Its data are in it as JSON, in which no text can end the script."""
    here = Path(__file__).parent
    style, page = ((here / name).read_text(encoding="utf-8") for name in ("style.css", "history.html"))
    data = json.dumps(history.as_dict(), allow_nan=False).replace("<", "\\u003c")
    return page.replace("/*style*/", style).replace("/*data*/", data)


def render_history(history: History) -> list[RenderableType]:
    """A table of the newest figures, oldest of them first."""
    rows = new_table(
        f"history of {len(history.runs)} runs", "run", "artifact", "decode [95 %]", "prefill [95 %]", "perplexity",
        "peak RSS MiB", "verdict", "changed",
    )  # fmt: skip
    for point in history.points[-SHOWN:]:
        run = history.runs[point.run]
        colour = VERDICT_COLOURS.get(run.verdict or "", "")
        verdict = f"[{colour}]{run.verdict}[/]" if run.verdict and colour else run.verdict or ""
        rows.add_row(*map(escape, _cells(run.label, point)), verdict, escape("; ".join(run.changed)))
    left = len(history.points) - SHOWN
    return [rows, *([f"  {left} older figures are on the page"] if left > 0 else [])]


def _cells(label: str, point: HistoryPoint) -> list[str]:
    ratios = [_ratio(ratio) for ratio in (point.decode_ratio, point.prefill_ratio)]
    return [label, point.artifact, *ratios, number(point.perplexity), number(point.peak_rss_mib, 0)]


def _ratio(ratio: Ratio | None) -> str:
    return f"{ratio.ratio:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]" if ratio else ""
