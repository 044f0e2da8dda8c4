"""The results of each stage, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.markup import escape

from saap_edge.documents.bench import Bench
from saap_edge.documents.gate import Gate
from saap_edge.documents.plan import Plan, load_plan
from saap_edge.documents.report import Report
from saap_edge.documents.verify import Parity, Verify
from saap_edge.files import read_json
from saap_edge.report.bench import render_bench
from saap_edge.report.chat import render_chat
from saap_edge.report.prediction import render_predictions
from saap_edge.report.tables import change, new_table, number

__all__ = [
    "VERDICT_COLOURS",
    "render_bench",
    "render_check",
    "render_evaluation",
    "render_gate",
    "render_plan",
    "render_prune",
    "render_recover",
    "render_stage",
    "render_verify",
    "render_write",
]

VERDICT_COLOURS = {"pass": "green", "fail": "bold red", "inconclusive": "yellow"}


def render_stage(name: str, folder: Path) -> list[RenderableType]:
    """Tables and lines for a finished stage; none for stages that have nothing to show."""
    renderers: dict[str, Callable[[Path], list[RenderableType]]] = {
        "write": lambda path: render_write(read_json(path)),
        "plan": lambda path: render_plan(load_plan(path)), "prune": lambda path: render_prune(read_json(path)),
        "recover": lambda path: render_recover(read_json(path)),
        "verify": lambda path: render_verify(Verify.read(path).artifacts),
        "bench": lambda path: render_bench(Bench.read(path)), "gate": lambda path: render_gate(Gate.read(path)),
        "report": lambda path: render_predictions(Report.read(path)),
    }  # fmt: skip
    path = folder / f"{name}.json"
    return renderers[name](path) if name in renderers and path.is_file() else []


def render_write(write: dict[str, Any]) -> list[RenderableType]:
    """A line on the text that the model wrote."""
    dropped = ", ".join(f"{count} {reason}" for reason, count in write["dropped"].items())
    return [
        f"  {write['documents']:,} documents of {write['tokens']:,} tokens, written as {write['form']}; "
        f"{sum(write['dropped'].values())} of {write['drafted']} dropped" + (f" ({dropped})" if dropped else "")
    ]


def render_plan(plan: Plan) -> list[RenderableType]:
    """Tables of widths, before => after, and of the plans that competed."""
    before, after = plan.parameters
    removed = f"{1 - after / before:.1%} removed"
    if plan.unit != "parameters":
        removed += f", {plan.achieved_ratio:.1%} of the {plan.unit}"
    title = f"plan ({plan.method}): {before:,} => {after:,} attention and FFN parameters ({removed})"
    table = new_table(title, "layer", "heads", "kv heads", "FFN width")
    for layer in plan.layers:
        table.add_row(str(layer.layer), change(*layer.heads), change(*layer.kv_heads), change(*layer.ffn))
    parts: list[RenderableType] = [table]
    if plan.candidates:
        rivals = new_table("candidates, repaired, on held-out text", "method", "removed", "perplexity", "")
        most = max(rival.heldout_windows or 0 for rival in plan.candidates)
        for rival in plan.candidates:
            few = rival.heldout_windows is not None and rival.heldout_windows < most
            note = "[green]kept[/]" if rival.chosen else f"on {rival.heldout_windows} windows" if few else ""
            rivals.add_row(rival.method, f"{rival.achieved_ratio:.1%}", f"{rival.heldout_perplexity:.2f}", note)
        parts.append(rivals)
    return parts


def render_prune(prune: dict[str, Any]) -> list[RenderableType]:
    """A line of held-out perplexity: dense, cut, repaired."""
    figures = prune["heldout_perplexity"]
    return ["  held-out perplexity: " + ", ".join(f"{name} {value:.2f}" for name, value in figures.items())]


def render_recover(recover: dict[str, Any]) -> list[RenderableType]:
    """A table of held-out figures, before and after, in full precision and in blocks."""
    precisions = {"fp": "full precision", "blocks": f"{recover['format']}, groups of {recover['group']}"}
    figures = {"perplexity": "{:.2f}"}
    if "divergence_fp" in recover["after"]:
        figures["divergence"] = "{:.3f}"
    columns = [(f"{figure}_{key}", form) for figure, form in figures.items() for key in precisions]
    heads = [f"{figure}, {name}" for figure in figures for name in precisions.values()]
    table = new_table(f"recovery, {recover['tokens']:,} tokens: {recover['kept']}", "held-out text", *heads)
    for row in ("dense", "before", "after"):
        table.add_row(row, *(form.format(recover[row][name]) for name, form in columns))
    return [table, *(f"[yellow]note:[/] {escape(note)}" for note in recover.get("notes", ()))]


def render_verify(parities: list[Parity]) -> list[RenderableType]:
    """A table of every artifact's error against torch, and its greedy text."""
    table = new_table(
        "artifacts against torch (relative error of logits)", "artifact", "error", "tolerance", "greedy text"
    )
    for entry in parities:
        text = escape(" ".join(entry.greedy_text.split())[:70])
        table.add_row(f"{entry.role} {entry.format}", f"{entry.max_error:.1e}", f"{entry.tolerance:.0e}", text)
    return [table]


def render_check(check: dict[str, Any]) -> list[str]:
    """Lines on what verify found in a bundle."""
    wrong = [*check["problems"], *check["differences"]]
    lines = [f"[bold red]error:[/] {escape(' '.join(line.split()))}" for line in wrong]
    lines += [f"[yellow]note:[/] {escape(note)}" for note in check["notes"]]
    if not wrong:
        figures = f"{check['error']:.1e}, tolerance {check['tolerance']:.1e}"
        lines.append(f"[green]ok[/]: {check['role']} {check['format']} answers as it should (error {figures})")
        lines.append(f"  {escape(' '.join(check['text'].split())[:100])}")
    return lines


def render_gate(gate: Gate) -> list[RenderableType]:
    """A table of verdicts with their reasons."""
    if not gate.verdicts:
        return ["  no limits given: nothing to judge"]
    table = new_table("budget", "limit", "artifact", "verdict", "how", "figure")
    for entry in gate.verdicts:
        colour = VERDICT_COLOURS[entry.verdict]
        limit = f"{entry.metric} {entry.limit}"
        table.add_row(
            escape(limit), escape(entry.name or entry.artifact or "-"), f"[{colour}]{entry.verdict}[/]", entry.kind,
            escape(entry.reason),
        )  # fmt: skip
    return [table]


def render_evaluation(document: dict[str, Any]) -> list[RenderableType]:
    """A table of all figures, artifacts side by side, and lines on what each was measured on."""
    names = [entry["name"] for entry in document["artifacts"]]
    chats: list[RenderableType] = render_chat(document["chat"]) if document["chat"] else []
    if not names:
        return [*(f"  note: {escape(note)}" for note in document["notes"]), *chats]
    version = f", lm-eval {document['lm_eval']}" if document["lm_eval"] else ""
    table = new_table(f"{document['evaluated']}: quality{version}", "measured on", "figure", *names)
    cells: dict[tuple[str, str], dict[str, str]] = {}
    notes: dict[str, str] = {}  # the same for all artifacts
    for entry in document["tasks"]:
        label, value = _figure(entry)
        cells.setdefault((entry["task"], label), {})[entry["artifact"]] = value
        notes[entry["task"]] = f"{entry['n'] or '-'} rows" + (f", sha256 {entry['sha256']}" if entry["sha256"] else "")
    for entry in document["perplexity"]:
        cells.setdefault((entry["text"], "perplexity"), {})[entry["artifact"]] = number(entry["value"], 3)
        notes[entry["text"]] = (
            f"windows of {entry['window']} tokens, {entry['tokens']} of them predicted, sha256 {entry['sha256']}"
        )
    for labels, values in cells.items():
        table.add_row(*map(escape, labels), *(values.get(name, "-") for name in names))
    lines = [f"  note: {escape(note)}" for note in document["notes"]]
    lines += [f"  {escape(what)}: {note}" for what, note in notes.items()]
    lines += [
        f"  {entry['name']}: {entry['seconds']:.0f} s"
        + (
            f"; {entry['shortened_requests']} requests longer than {entry['context']} tokens lost their beginning"
            if entry["shortened_requests"]
            else ""
        )
        for entry in document["artifacts"]
    ]
    return [table, *lines, *chats]


def _figure(entry: dict[str, Any]) -> tuple[str, str]:
    """(name, value with its standard error): shares in percent, other figures as they are."""
    value, stderr = entry["value"], entry["stderr"]
    share = entry["metric"].startswith(("acc", "exact_match"))
    scale, digits = (100, 1) if share else (1, 2 if value < 1e5 else 0)
    error = f" ± {scale * stderr:.{digits}f}" if stderr is not None else ""
    return entry["metric"] + (" %" if share else ""), f"{scale * value:.{digits}f}{error}"
