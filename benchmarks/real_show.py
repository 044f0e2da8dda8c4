"""real.py show: the tables, from what the other parts left."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

import numpy as np
from real_frame import KNOWN_BY, Rows
from result import fill, publish
from scipy.stats import bootstrap

MARK, MARK_FILES, MARK_TRAINED = "real methods", "real files", "real recovered"
STATES = ("cut", "repaired")
ALIKE = ("ratio", "tokens", "written")  # of rows that are compared after training


def show(arguments: argparse.Namespace) -> None:
    """Print Markdown tables and one JSON line."""
    methods, recovered = (Rows(arguments.work, name).rows for name in ("methods", "recovered"))
    others = {name: Rows(arguments.work, name).rows for name in ("answers", "chats", "raw")}
    conditions = json.loads((arguments.work / "conditions.json").read_text(encoding="utf-8"))
    result: dict[str, Any] = {"benchmark": "real"} | conditions
    result["methods"] = [method_row(row, methods) for row in methods]
    result["recovered"] = [recovered_row(row, recovered, others) for row in recovered]
    if arguments.earlier:
        add_earlier(result, conditions, json.loads(arguments.earlier.read_text(encoding="utf-8")))
    texts = list(result["windows"])
    parts = {
        MARK: tables(result),
        MARK_TRAINED: trained(result["recovered"], texts),
        MARK_FILES: files([row for row in result["recovered"] if row["tasks"]], texts),
    }
    for mark, lines in parts.items():
        print("\n".join([*lines, ""]))
        for page in arguments.pages if lines else ():
            fill(page, mark, lines)
    publish(result, arguments.out)


def add_earlier(result: dict[str, Any], conditions: dict[str, Any], earlier: dict[str, Any]) -> None:
    """Put the earlier result's rows first, then those that it lacks. A row that has tasks replaces one without.

    Rows of different conditions are not put beside each other.
    """
    changed = [name for name, value in conditions.items() if earlier[name] != value]
    if changed:
        raise SystemExit(f"the earlier result was measured otherwise: {', '.join(changed)}")
    for part, known_by in (("methods", ("ratio", "method")), ("recovered", KNOWN_BY)):
        mine = {tuple(row[name] for name in known_by): row for row in result[part]}
        theirs = {tuple(row[name] for name in known_by): row for row in earlier[part]}
        for known, row in mine.items():
            if known not in theirs or (row.get("tasks") and not theirs[known]["tasks"]):
                theirs[known] = row  # in the place of the earlier one, or at the end
        result[part] = list(theirs.values())


def perplexities(losses: dict[str, list[float]]) -> dict[str, float]:
    """By text, of losses of its windows."""
    return {text: round(math.exp(float(np.mean(values))), 2) for text, values in losses.items()}


def beside(losses: dict[str, list[float]], other: dict[str, list[float]]) -> dict[str, list[float]]:
    """By text: this perplexity over the other's, and the interval of that ratio."""
    found = {}
    for text, values in losses.items():
        gain = np.array(values) - np.array(other[text])
        drawn = bootstrap((gain,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(0))
        ends = (gain.mean(), drawn.confidence_interval.low, drawn.confidence_interval.high)
        found[text] = [round(float(np.exp(end)), 3) for end in ends]
    return found


def method_row(row: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of one method at one ratio, and its repaired perplexity beside that of `auto`."""
    auto = next((o for o in rows if o["method"] == "auto" and o["ratio"] == row["ratio"]), None)
    found = {name: value for name, value in row.items() if name not in ("losses", "perplexity")}
    found |= {state: perplexities(losses) for state, losses in row["losses"].items()}
    if auto and auto is not row:
        found["repaired_over_auto"] = beside(row["losses"]["repaired"], auto["losses"]["repaired"])
    return found


def recovered_row(
    row: dict[str, Any], rows: list[dict[str, Any]], others: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """Figures of one file; it is compared with the dense model's file, which was not trained."""
    dense = next(other for other in rows if other["method"] == "dense" and other["tokens"] == 0)
    found = {name: value for name, value in row.items() if name not in ("losses", "file")}
    found["perplexity"] = perplexities(row["losses"])
    if dense is not row:
        found["over_dense"] = beside(row["losses"], dense["losses"])
    known = {name: row[name] for name in KNOWN_BY}
    mine = {name: [one for one in each if known.items() <= one.items()] for name, each in others.items()}
    for one in mine["raw"]:
        found["llama_perplexity"] = {name: one[name] for name in ("perplexity", "chunk", "chunks")}
    for one in mine["chats"]:
        found["chats"] = {name: value for name, value in one.items() if name not in known}
    tasks = mine["answers"]
    found["tasks"] = {one["task"]: {key: one[key] for key in ("metric", "value", "stderr", "n")} for one in tasks}
    if tasks:
        found["average"] = round(100 * float(np.mean([one["value"] for one in tasks])), 1)
        found["average_stderr"] = round(100 * math.sqrt(sum(one["stderr"] ** 2 for one in tasks)) / len(tasks), 1)
    return found


def tables(result: dict[str, Any]) -> list[str]:
    """Markdown: methods by ratio."""
    texts = list(result["windows"])
    columns = [f"{text}, {state}" for state in STATES for text in texts]
    lines: list[str] = []
    rows = [row for row in result["methods"] if row["method"] != "dense"]
    dense = [row["dense"] for row in result["methods"] if row["method"] == "dense"]
    lines += [f"dense: {', '.join(f'{text} {value}' for text, value in one.items())}" for one in dense]
    for ratio in sorted({row["ratio"] for row in rows}):
        lines += [
            "",
            f"| {ratio:.0%} | removed | {' | '.join(columns)} | over auto [95 %] |",
            "|---" * (len(columns) + 3) + "|",
        ]
        mine = [row for row in rows if row["ratio"] == ratio]
        for row in sorted(mine, key=lambda row: row["repaired"][texts[0]]):
            figures = [f"{row[state][text]:.1f}" for state in STATES for text in texts]
            other = row.get("repaired_over_auto")
            figures.append("{:.2f} [{:.2f}, {:.2f}]".format(*other[texts[0]]) if other else "")
            lines.append(f"| {row['method']} | {row['removed']:.1%} | {' | '.join(figures)} |")
    return lines


def trained(rows: list[dict[str, Any]], texts: list[str]) -> list[str]:
    """The table of methods that were trained with the same tokens on the same text, by what training left of the
    divergence from the dense model."""
    heads = ["divergence, repaired", "recovered", "perplexity, repaired", "recovered", *(f"Q4_0, {t}" for t in texts)]
    lines: list[str] = []
    for ratio, tokens, written in dict.fromkeys(tuple(row[name] for name in ALIKE) for row in rows if row["tokens"]):
        mine = [row for row in rows if tuple(row[name] for name in ALIKE) == (ratio, tokens, written)]
        if len(mine) < 2:
            continue
        lines += ["", f"| {ratio:.0%}, {tokens:,} tokens | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
        for row in sorted(mine, key=lambda row: row["after"]["divergence_fp"]):
            figures = [f"{row[when]['divergence_fp']:.3f}" for when in ("before", "after")]
            figures += [f"{row[when]['perplexity_fp']:.1f}" for when in ("before", "after")]
            figures += [f"{row['perplexity'][text]:.1f}" for text in texts]
            lines.append(f"| {row['method']} | {' | '.join(figures)} |")
    return lines


def files(rows: list[dict[str, Any]], texts: list[str]) -> list[str]:
    """The table of Q4_0 files in llama.cpp."""
    if not rows:
        return []
    names = list(dict.fromkeys(name for row in rows for name in row["tasks"]))
    heads = [
        "removed",
        "method",
        "own text",
        "tokens",
        "MB",
        *texts,
        "llama-perplexity",
        *names,
        "average",
        "followed",
        "ends",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [
            f"{row['ratio']:.0%}",
            row["method"],
            f"{row['written']:.0%}",
            f"{row['tokens']:,}",
            f"{row['file_bytes'] / 1e6:.1f}",
        ]
        cells += [f"{row['perplexity'][text]:.1f}" for text in texts]
        cells.append(f"{row['llama_perplexity']['perplexity']:.1f}" if "llama_perplexity" in row else "")
        cells += [f"{100 * row['tasks'][name]['value']:.0f}" if name in row["tasks"] else "" for name in names]
        cells.append(f"{row['average']} ± {row['average_stderr']}" if "average" in row else "")
        cells += [f"{row['chats'][name]['share']:.0%}" if "chats" in row else "" for name in ("followed", "ends")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


__all__ = ["show"]
