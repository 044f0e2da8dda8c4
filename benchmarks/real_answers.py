"""real.py answers, chats, raw: zero-shot accuracy, chats and llama-perplexity's figure of the files of `recover`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from llama_perplexity import CHUNK, chunks, halves
from real_frame import KNOWN_BY, Rows, folder_of

from saap_edge import api

__all__ = ["answers", "chats", "raw"]

PLAIN = ("boolq", "winogrande")  # answers of one length: accuracy as it is, not normalised by length


def files(work: Path) -> Iterator[tuple[dict[str, Any], Path]]:
    """What a file is known by, and its path."""
    for row in Rows(work, "recovered").rows:
        known = {name: row[name] for name in KNOWN_BY}
        yield known, folder_of(work, row) / row["file"]


def answers(arguments: argparse.Namespace) -> None:
    """A row for every file and task; acc_norm where lm-eval gives it, but for BoolQ and WinoGrande, as is usual."""
    rows, limit = Rows(arguments.work, "answers"), arguments.limit
    for known, file in files(arguments.work):
        for name in arguments.names:
            if rows.has(task=name, limit=limit, **known):
                continue
            document = api.evaluate(
                file, tasks=[str(arguments.tasks / f"{name}.jsonl")], limit=limit, threads=arguments.threads
            )
            rows.add(known | {"limit": limit, "task": name} | figure(document["tasks"], name))


def figure(found: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Of lm-eval's figures of a task the one that is compared."""
    metric = "acc" if name in PLAIN else "acc_norm"
    [row] = [row for row in found if row["metric"] == metric]
    return {key: row[key] for key in ("metric", "value", "stderr", "n", "sha256")}


def chats(arguments: argparse.Namespace) -> None:
    """A row for every file: its answers to the package's instructions, beside those of the dense model's Q4_0."""
    rows, dense = Rows(arguments.work, "chats"), None
    for known, file in files(arguments.work):
        dense = file if known["method"] == "dense" else dense
        if not rows.has(**known):
            document = api.evaluate(
                file, chat=True, dense=dense, answers=arguments.work / "answers-to-instructions.jsonl",
                threads=arguments.threads,
            )  # fmt: skip
            one = next(row for row in document["chat"] if not row["artifact"].startswith("dense "))
            names = ("n", "followed", "ends", "repeats", "agreement", "lost")
            rows.add(known | {name: one[name] for name in names})


def raw(arguments: argparse.Namespace) -> None:
    """A row for every file: perplexity as llama-perplexity counts it."""
    rows = Rows(arguments.work, "raw")
    for known, file in files(arguments.work):
        if not rows.has(**known):
            folder = file.parent / f"recovered-{known['tokens']}" / "model"
            windows = chunks(folder, arguments.text, arguments.chunks)
            losses = halves(file, windows, arguments.threads)
            rows.add(
                known | {"chunk": CHUNK, "chunks": len(windows), "perplexity": round(float(np.exp(np.mean(losses))), 3)}
            )
