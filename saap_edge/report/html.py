"""One self-contained HTML page: verdict, frontier, widths, tables, conditions. Nothing is fetched from anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from saap_edge.documents.bench import Bench, BenchedArtifact
from saap_edge.documents.report import Report
from saap_edge.formats import described
from saap_edge.measuring.pareto import on_front
from saap_edge.report import figures

__all__ = ["environment", "render_html"]


def environment() -> jinja2.Environment:
    """The environment of the pages' templates. All that is put into them is escaped."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )


def render_html(report: Report) -> str:
    """The page for a report document (see `documents.report`), as text."""
    bench, plan = report.bench, report.plan
    with figures.styled():
        plots = {
            "frontier": [figures.svg(_frontier(bench, by_speed)) for by_speed in (True, False)],
            "widths": [
                figures.svg(figures.widths(plan, name, title))
                for name, title in (("kv_heads", "kv heads"), ("ffn", "FFN width"))
            ],
            "latency": [figures.svg(figures.latency(bench.artifacts))],
            "depths": [figures.svg(figure) for figure in _depths(bench)],
        }
    return environment().get_template("template.html.j2").render(report=report, pairs=bench.pairs(), plots=plots)


def _frontier(bench: Bench, by_speed: bool) -> Any:
    """Perplexity against decode speed or bytes, dense and pruned in every format."""
    known = [entry for entry in bench.artifacts if entry.metrics.perplexity is not None]
    losses = [entry.metrics.perplexity or 0.0 for entry in known]
    spans = [_speed(entry) if by_speed else _size(entry) for entry in known]
    front = on_front([span[0] if by_speed else -span[0] for span in spans], losses)
    dots = []
    for entry, span, loss, marked in zip(known, spans, losses, front, strict=True):
        record = described(entry.format)
        dots.append(figures.Dot(record.quantisation, record.kind, entry.role != "dense", *span, loss, marked))
    label = "decode tokens per second (measured)" if by_speed else "file size, MiB"
    return figures.frontier(dots, label, falling=not by_speed)


def _depths(bench: Bench) -> list[Any]:
    """Speed and memory against the context, if they were measured."""
    if not bench.conditions.contexts:
        return []
    known = (("decode_tok_s", "decode tokens per second"), ("peak_rss_mib", "peak RSS, MiB"))
    return [figures.depths(bench.artifacts, name, label) for name, label in known]


def _speed(entry: BenchedArtifact) -> tuple[float, float, float]:
    rate = entry.metrics.timed("decode_tok_s")
    return rate.median, rate.low, rate.high


def _size(entry: BenchedArtifact) -> tuple[float, float, float]:
    size = entry.metrics.counted("file_bytes") / 2**20
    return size, size, size
