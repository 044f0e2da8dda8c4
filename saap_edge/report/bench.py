"""A bench document for the terminal: pairs as before => after, artifacts that were measured alone, and doubts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from saap_edge.artifacts import slow_ones
from saap_edge.documents.bench import Bench, BenchedArtifact, Conditions, Metrics, Pair
from saap_edge.documents.measured import Depth, Ratio
from saap_edge.measuring.document import DISTURBED, NOISY
from saap_edge.report.builds import render_builds
from saap_edge.report.sustained import render_sustained
from saap_edge.report.tables import new_table, number

__all__ = ["render_bench"]

Column = tuple[str, Callable[[Metrics], str]]


def _median(name: str, digits: int) -> Callable[[Metrics], str]:
    return lambda metrics: number(metrics[name] and metrics[name].median, digits)


_SPEED: tuple[Column, ...] = (
    ("prefill tok/s", _median("prefill_tok_s", 0)),
    ("TTFT ms", _median("ttft_ms", 1)),
    ("step p95 ms", lambda metrics: number(metrics.itl_ms.p95 if metrics.itl_ms else None)),
    ("load ms", _median("load_ms", 0)),
)
_REST: tuple[Column, ...] = (
    ("peak RSS MiB", _median("peak_rss_mib", 0)),
    ("peak PSS MiB", _median("peak_pss_mib", 0)),
    ("held MiB", _median("held_mib", 0)),
    ("file MiB", lambda metrics: f"{metrics.counted('file_bytes') / 2**20:.2f}"),
    ("KV bytes/token", lambda metrics: str(metrics.kv_bytes_per_token)),
    ("perplexity", lambda metrics: number(metrics.perplexity)),
    ("chat followed %", lambda metrics: _chat(metrics, "followed")),
    ("chat ends %", lambda metrics: _chat(metrics, "ended")),
    ("J/token", lambda metrics: number(metrics.energy_j_per_token, 4)),
)


def render_bench(bench: Bench) -> list[RenderableType]:
    """Tables of speed (with ratios and intervals), of memory, bytes and quality, and of depths; lines of doubts."""
    pairs, beside = bench.pairs(), {name for entry in bench.comparisons for name in (entry.base, entry.candidate)}
    alone = [entry for entry in bench.artifacts if entry.name not in beside]
    roles = dict.fromkeys(f"{pair.base.role} => {pair.candidate.role}" for pair in pairs)
    where = f"{bench.machine.cpu}, {_conditions(bench.conditions)}"
    rest = [column for column in _REST if _known(bench, column)]
    speed = new_table(
        escape(f"{', '.join(roles) or 'measured'} on {where}"), "format", "decode tok/s", "speedup [95 %]", "ideal",
        *(title for title, _ in _SPEED), "noise",
    )  # fmt: skip
    memory = new_table("memory, bytes, quality", "format", *(title for title, _ in rest))
    for pair in pairs:
        decode = " => ".join(_median("decode_tok_s", 0)(metrics) for metrics in pair.sides)
        figures = _interval(pair.ratios.decode_tok_s), f"{pair.ideal_decode_ratio:.2f}"
        label = " => ".join(dict.fromkeys(side.format for side in (pair.base, pair.candidate)))
        speed.add_row(label, decode, *figures, *_cells(_SPEED, pair.sides), _noise(pair.sides))
        memory.add_row(label, *_cells(rest, pair.sides))
    for entry in alone:
        sides = [entry.metrics]
        speed.add_row(entry.name, _median("decode_tok_s", 0)(sides[0]), "", "", *_cells(_SPEED, sides), _noise(sides))
        memory.add_row(entry.name, *_cells(rest, sides))
    if bench.conditions.minutes is not None:
        return [memory, *render_builds(bench), *render_sustained(bench), *_doubts(bench)]
    return [speed, memory, *_depths(bench, pairs, alone), *render_builds(bench), *_doubts(bench)]


def _chat(metrics: Metrics, name: str) -> str:
    """Percent of the instructions that were asked."""
    cases = [case for case in (metrics.chat[name] if metrics.chat else []) if case is not None]
    return number(100 * sum(cases) / len(cases) if cases else None, 1)


def _conditions(conditions: Conditions) -> str:
    threads = conditions.threads or 1
    cache = f", KV cache in {conditions.kv}" if conditions.kv else ""
    return (
        f"{threads} thread{'s' if threads > 1 else ''}, prompt {conditions.prompt_tokens}, "
        f"{conditions.rounds} rounds in random order{cache}"
    )


def _cells(columns: Any, sides: list[Metrics]) -> list[str]:
    """The cells of every column: before => after, or one figure where both are the same."""
    return [" => ".join(dict.fromkeys(show(metrics) for metrics in sides)) for _, show in columns]


def _noise(sides: list[Metrics]) -> str:
    """The noise of the noisier side."""
    return f"{max(metrics.noise or 0.0 for metrics in sides):.1%}"


def _known(bench: Bench, column: Column) -> bool:
    """Whether some artifact has that figure."""
    return any(column[1](entry.metrics) != "-" for entry in bench.artifacts)


def _interval(ratio: Ratio) -> str:
    return f"{ratio.ratio:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def _depths(bench: Bench, pairs: list[Pair], alone: list[BenchedArtifact]) -> list[Table]:
    """A table of decoding at every context, if it was measured."""
    if not bench.conditions.contexts:
        return []
    table = new_table(
        "decoding when the context holds so many tokens", "format", "context", "decode tok/s", "speedup [95 %]",
        "ideal", "peak RSS MiB", "KV MiB",
    )  # fmt: skip
    for pair in pairs:
        for ratio, *rows in zip(pair.contexts, *(side.contexts for side in pair.sides), strict=True):
            figures = _interval(ratio.decode_tok_s), f"{ratio.ideal_decode_ratio:.2f}"
            table.add_row(pair.candidate.format, *_depth(rows, figures))
    for entry in alone:
        for row in entry.metrics.contexts:
            table.add_row(entry.name, *_depth([row], ("", "")))
    return [table]


def _depth(rows: list[Depth], figures: tuple[str, str]) -> list[str]:
    shown = [
        (number(row.decode_tok_s.median, 0), number(row.peak_rss_mib, 0), number(row.kv_bytes / 2**20, 1))
        for row in rows
    ]
    decode, memory, kv = (" => ".join(dict.fromkeys(figure)) for figure in zip(*shown, strict=True))
    return [str(rows[0].context), decode, *figures, memory, kv]


def _doubts(bench: Bench) -> list[str]:
    """Lines on what makes the figures doubtful: noise, other programs, an unfinished warm-up, throttling."""
    warm_up, before, after = bench.conditions.warm_up, bench.machine.before, bench.machine.after
    noisy = [entry.name for entry in bench.artifacts if (entry.metrics.noise or 0) > NOISY]
    lines = []
    if noisy:
        lines.append(
            f"  [yellow]noisy[/]: rounds scatter by more than {NOISY:.0%} ({escape(', '.join(noisy))}): trust ratios, "
            "not single figures"
        )
    shares = [1.0 if entry.metrics.cpu_share is None else entry.metrics.cpu_share for entry in bench.artifacts]
    if min(shares, default=1.0) < DISTURBED:
        lines.append(
            f"  [yellow]disturbed[/]: others used the CPUs; threads that decoded had one {min(shares):.0%} of the time"
        )
    if warm_up and not warm_up.stable:
        lines.append(f"  [yellow]not stable[/]: decode speed did not settle in {warm_up.rounds} rounds of warm-up")
    lines += [f"  [yellow]slow[/]: {escape(line)}" for line in slow_ones(entry.format for entry in bench.artifacts)]
    if after.throttled not in (before.throttled, None):
        lines.append(
            f"  [bold red]throttled[/]: the board slowed itself down meanwhile ({before.throttled} => "
            f"{after.throttled}): cool it, and check its power supply"
        )
    return lines
