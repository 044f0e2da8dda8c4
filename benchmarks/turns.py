"""Artifacts, or one artifact with several options, timed by turns in CPU time: kv.py, ubatch.py and gguf_types.py."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from saap_edge.engines.options import EngineOptions
from saap_edge.engines.registry import engine_opening
from saap_edge.engines.worker import Worker, child_environment

__all__ = ["by_turns", "child", "engine_of", "told"]


def by_turns(
    ways: Mapping[str, tuple[Path, EngineOptions]], threads: int, context: int, steps: int, turns: int
) -> dict[str, dict[str, Any]]:
    """Prefill of `context` less `steps` random tokens, and as many greedy steps behind them.

    Returns of every way: CPU seconds of the prompt and CPU milliseconds of a step (all threads, medians of turns), and
    `prefill` and `decode`: the first way's time over its own in the same turn, as (median, lowest, highest).
    """
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    dice, prompt = random.Random(0), context - steps
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker(engine_of(path), path, threads, context, options))
            for name, (path, options) in ways.items()
        }
        vocabulary = min(worker.loaded["vocab_size"] for worker in workers.values())
        tokens = [dice.randrange(vocabulary) for _ in range(prompt)]
        for worker in workers.values():
            worker.time(tokens[:16], 2)
        for _ in range(turns):
            for name in dice.sample(list(workers), len(workers)):
                timed = workers[name].time(tokens, steps)
                taken[name].append((timed["ttft_cpu_s"], median(timed["decode_cpu_s"])))
    first = next(iter(taken.values()))
    return {
        name: {
            "prefill_cpu_s": round(median(prefill for prefill, _ in own), 4),
            "step_cpu_ms": round(1000 * median(step for _, step in own), 3),
            "prefill": _ratio([base[0] / each[0] for base, each in zip(first, own, strict=True)]),
            "decode": _ratio([base[1] / each[1] for base, each in zip(first, own, strict=True)]),
        }
        for name, own in taken.items()
    }


def engine_of(path: Path) -> str:
    """The name of the engine that opens the artifact."""
    engine = engine_opening(path)
    if engine is None:
        raise SystemExit(f"{path}: a GGUF file or an ONNX folder is needed")
    return engine.name


def _ratio(values: list[float]) -> list[float]:
    return [round(value, 3) for value in (median(values), min(values), max(values))]


def told(ratio: list[float]) -> str:
    """A ratio of `by_turns` in a table."""
    return f"{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]"


def child(script: str, path: Path, *arguments: Any) -> Any:
    """The JSON line of a script beside this one, in a process with the variables of an engine's process."""
    command = [sys.executable, str(Path(__file__).with_name(script)), str(path), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=child_environment())
    return json.loads(done.stdout.splitlines()[-1])
