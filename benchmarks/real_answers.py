"""real.py answers: zero-shot accuracy of the files that `recover` wrote, in llama.cpp, by lm-eval."""

from __future__ import annotations

import argparse
from typing import Any

from real_frame import Rows

from saap_edge import api

PLAIN = ("boolq", "winogrande")  # answers of one length: accuracy as it is, not normalised by length


def answers(arguments: argparse.Namespace) -> None:
    """A row for every file and task; acc_norm where lm-eval gives it, but for BoolQ and WinoGrande, as is usual."""
    rows, files = Rows(arguments.work, "answers"), Rows(arguments.work, "recovered").rows
    for row in files:
        known = {"ratio": row["ratio"], "method": row["method"], "tokens": row["tokens"], "limit": arguments.limit}
        names = [name for name in arguments.names if not rows.has(task=name, **known)]
        file = arguments.work / f"{row['method']}-{row['ratio']:.2f}" / row["file"]
        for name in names:
            document = api.evaluate(
                file, tasks=[str(arguments.tasks / f"{name}.jsonl")], limit=arguments.limit, threads=arguments.threads
            )
            rows.add(known | {"task": name} | figure(document["tasks"], name))


def figure(found: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Of lm-eval's figures of a task the one that is compared."""
    metric = "acc" if name in PLAIN else "acc_norm"
    [row] = [row for row in found if row["metric"] == metric]
    return {key: row[key] for key in ("metric", "value", "stderr", "n", "sha256")}
