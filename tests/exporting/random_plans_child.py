"""Runs the files of random plans, in a process that one of them may kill: answers up to there are on disk."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from saap_edge.engines.base import Engine
from saap_edge.engines.child import load_engine
from tests.exporting.llama_support import ExactEngine


def answers(engine: Engine, tokens: list[int]) -> dict[str, np.ndarray]:
    """Logits [tokens, vocab] of the whole prompt at once, and of half of it and single steps."""
    prefill, half = engine.forward(tokens, all_logits=True).copy(), len(tokens) // 2
    engine.reset()
    parts = [engine.forward(tokens[:half], all_logits=True).copy()]
    parts += [engine.forward([token]).copy() for token in tokens[half:]]
    return {"prefill": prefill, "steps": np.concatenate(parts)}


def main() -> None:
    folder = Path(sys.argv[1])
    for index, job in enumerate(json.loads((folder / "jobs.json").read_text(encoding="utf-8"))):
        path, context = Path(job["path"]), job.get("context", 64)
        engine = ExactEngine(path, 1, context) if job["engine"] == "exact" else load_engine(
            job["engine"], str(path), 1, context
        )  # fmt: skip
        np.savez(folder / f"answers-{index}.npz", **answers(engine, job["tokens"]))


if __name__ == "__main__":
    main()
