"""Decode speed and memory as functions of the context: how long a sequence already is when a token is decoded."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from saap_edge.engines.worker import Worker
from saap_edge.measuring.conditions import BenchConditions, Subject
from saap_edge.measuring.cores import fastest_cores, share_cores
from saap_edge.measuring.statistics import paired_ratio, summary
from saap_edge.prediction.cost import bytes_per_token

__all__ = ["add_contexts", "context_steps", "random_tokens"]

WARM_UP = 1  # the long prefill before has warmed up all else


def context_steps(conditions: BenchConditions) -> int:
    """Steps that `add_contexts` reports for a subject."""
    return len(conditions.contexts) * (1 + WARM_UP + conditions.rounds)


def add_contexts(
    document: dict[str, Any], subjects: Sequence[Subject], conditions: BenchConditions, progress: Callable[[int], None]
) -> None:
    """Measure at every one of `conditions.contexts`, and put a row each into artifacts and comparisons.

    An artifact's row: context (tokens), decode_tok_s, tok_per_cpu_s (by the CPU time of all threads), peak_rss_mib and
    pss_mib of a process whose KV cache has room for that many tokens and those decoded (PSS shares out what is mapped
    by those beside it too), kv_bytes (of that many tokens), bytes_per_token (that decoding reads). A comparison's:
    context, decode_tok_s (a ratio), ideal_decode_ratio.
    Raises SaapError when an artifact does not run.
    """
    artifacts = {entry["name"]: entry["metrics"] for entry in document["artifacts"]}
    for context in conditions.contexts:
        timed, memory = _rounds(subjects, context, conditions, progress)
        steps = {name: [float(np.median(entry["decode_s"])) for entry in rounds] for name, rounds in timed.items()}
        read = {}
        for subject in subjects:
            kv_bytes = artifacts[subject.name]["kv_bytes_per_token"]
            middle = context + conditions.decode_tokens // 2
            read[subject.name] = bytes_per_token(subject.projection_bytes, kv_bytes, middle)
            row = {
                "context": context, "decode_tok_s": summary([1 / seconds for seconds in steps[subject.name]]),
                "tok_per_cpu_s": float(1 / np.median([entry["decode_cpu_s"] for entry in timed[subject.name]])),
                **_in_mib(memory[subject.name]), "kv_bytes": kv_bytes * context, "bytes_per_token": read[subject.name],
            }  # fmt: skip
            artifacts[subject.name].setdefault("contexts", []).append(row)
        for entry in document["comparisons"]:
            base, candidate = entry["base"], entry["candidate"]
            row = {
                "context": context, "decode_tok_s": paired_ratio(steps[base], steps[candidate]),
                "ideal_decode_ratio": read[base] / read[candidate],
            }  # fmt: skip
            entry.setdefault("contexts", []).append(row)


def random_tokens(worker: Worker, count: int) -> list[int]:
    """Token ids that the vocabulary has; the time does not depend on which they are."""
    ids = np.random.default_rng(0).integers(0, int(worker.loaded["vocab_size"]), count)
    return [int(token) for token in ids]


def _open(subject: Subject, context: int, conditions: BenchConditions) -> Worker:
    """A process whose sequence has `context` tokens, with room for those that are decoded."""
    worker = Worker(subject.engine, subject.path, conditions.threads, context + conditions.decode_tokens)
    try:
        worker.fill(random_tokens(worker, context))
    except BaseException:
        worker.close()
        raise
    return worker


def _in_mib(memory: dict[str, int | None]) -> dict[str, float | None]:
    sizes = {"peak_rss_mib": memory["peak"], "pss_mib": memory["pss"]}
    return {name: None if size is None else size / 2**20 for name, size in sizes.items()}


def _rounds(
    subjects: Sequence[Subject], context: int, conditions: BenchConditions, progress: Callable[[int], None]
) -> tuple[dict[str, list[dict[str, list[float]]]], dict[str, dict[str, int | None]]]:
    """The steps of every round, in an order and on cores drawn by lot; and what each process takes at the end."""
    cores, dice = fastest_cores(conditions.threads), random.Random()
    rounds: dict[str, list[dict[str, list[float]]]] = {subject.name: [] for subject in subjects}
    with ExitStack() as stack:
        workers = {}
        for subject in subjects:
            workers[subject.name] = stack.enter_context(_open(subject, context, conditions))
            progress(1)
        for number in range(WARM_UP + conditions.rounds):
            share_cores(workers.values(), cores, conditions.threads, dice)
            for name in dice.sample(list(workers), len(workers)):
                timed = workers[name].time_steps(0, conditions.decode_tokens)
                if number >= WARM_UP:
                    rounds[name].append(timed)
                progress(1)
        memory = {name: worker.memory() for name, worker in workers.items()}
    return rounds, memory
