"""Decode speed and memory at several contexts: lengths that the sequence has when a token is decoded."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np

from saap_edge.documents.bench import Bench
from saap_edge.documents.measured import Depth, DepthRatio, Ratio, Summary
from saap_edge.engines.worker import Worker
from saap_edge.measuring.builds import Runner
from saap_edge.measuring.conditions import BenchConditions, Subject
from saap_edge.measuring.cores import fastest_cores, share_cores
from saap_edge.measuring.statistics import paired_ratio, summary
from saap_edge.prediction.cost import bytes_per_token

__all__ = ["context_steps", "random_tokens", "with_contexts"]

WARM_UP = 1  # rounds: the long prefill before them has warmed up almost everything


def context_steps(conditions: BenchConditions) -> int:
    """Number of steps that `with_contexts` reports for each subject."""
    return len(conditions.contexts) * (1 + WARM_UP + conditions.rounds)


def with_contexts(
    document: Bench, subjects: Sequence[Subject], conditions: BenchConditions, progress: Callable[[int], None]
) -> Bench:
    """Measure decoding at each of `conditions.contexts`, and return the document with a row for each.

    Memory is that of a process whose KV cache has room for so many tokens and those decoded. PSS counts pages that the
    other processes map, too, in part. Raises SaapError when an artifact does not run.
    """
    rows: dict[str, list[Depth]] = {subject.name: [] for subject in subjects}
    ratios: list[list[DepthRatio]] = [[] for _ in document.comparisons]
    for context in conditions.contexts:
        timed, memory = _rounds(subjects, context, conditions, progress)
        steps = {name: [float(np.median(entry["decode_s"])) for entry in rounds] for name, rounds in timed.items()}
        for artifact, subject in zip(document.artifacts, subjects, strict=True):
            kv_bytes, name = artifact.metrics.counted("kv_bytes_per_token"), subject.name
            middle = context + conditions.decode_tokens // 2
            depth = Depth(
                context=context, decode_tok_s=Summary(**summary([1 / seconds for seconds in steps[name]])),
                tok_per_cpu_s=float(1 / np.median([entry["decode_cpu_s"] for entry in timed[name]])),
                peak_rss_mib=_in_mib(memory[name]["peak"]), pss_mib=_in_mib(memory[name]["pss"]),
                kv_bytes=kv_bytes * context,
                bytes_per_token=bytes_per_token(subject.projection_bytes, kv_bytes, middle),
            )  # fmt: skip
            rows[name].append(depth)
        for entry, own in zip(document.comparisons, ratios, strict=True):
            base, candidate = (rows[name][-1].bytes_per_token or 0 for name in (entry.base, entry.candidate))
            ratio = Ratio(**paired_ratio(steps[entry.base], steps[entry.candidate]))
            own.append(DepthRatio(context=context, decode_tok_s=ratio, ideal_decode_ratio=base / candidate))
    return _with_rows(document, rows, ratios) if conditions.contexts else document


def _with_rows(document: Bench, rows: dict[str, list[Depth]], ratios: list[list[DepthRatio]]) -> Bench:
    artifacts = [
        artifact.model_copy(update={"metrics": artifact.metrics.model_copy(update={"contexts": rows[artifact.name]})})
        for artifact in document.artifacts
    ]
    comparisons = [
        entry.model_copy(update={"contexts": own}) for entry, own in zip(document.comparisons, ratios, strict=True)
    ]
    return document.model_copy(update={"artifacts": artifacts, "comparisons": comparisons})


def random_tokens(runner: Runner, count: int) -> list[int]:
    """`count` random token ids of the vocabulary. The time does not depend on which they are."""
    ids = np.random.default_rng(0).integers(0, int(runner.loaded["vocab_size"]), count)
    return [int(token) for token in ids]


def _open(subject: Subject, context: int, conditions: BenchConditions) -> Worker:
    """A process whose sequence has `context` tokens, with room for those that are decoded."""
    room = context + conditions.decode_tokens
    worker = subject.build.worker(subject.engine, subject.path, conditions.threads, room, conditions.options)
    try:
        worker.fill(random_tokens(worker, context))
    except BaseException:
        worker.close()
        raise
    return worker


def _in_mib(size: int | None) -> float | None:
    return None if size is None else size / 2**20


def _rounds(
    subjects: Sequence[Subject], context: int, conditions: BenchConditions, progress: Callable[[int], None]
) -> tuple[dict[str, list[dict[str, list[float]]]], dict[str, dict[str, int | None]]]:
    """Time the steps of every round, in a random order and on random cores. Returns them, and each process's memory."""
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
