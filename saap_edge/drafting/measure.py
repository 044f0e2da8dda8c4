"""Decoding with a draft beside decoding without it, in the runtime's own loop, each in a process of its own."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from saap_edge.documents.draft import Batch, Difference, DraftMeasured
from saap_edge.documents.measured import Ratio
from saap_edge.drafting.acceptance import Answer, sample_of
from saap_edge.drafting.speed import passes, speed_up
from saap_edge.engines.options import EngineOptions
from saap_edge.engines.registry import DRAFT
from saap_edge.engines.worker import Worker
from saap_edge.measuring.statistics import paired_ratio

__all__ = ["Setting", "measure", "steps_of"]

REPEATS = 7  # rounds of single costs: the fewest of which a median has an interval (measuring/statistics.py)
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Setting:
    """What is run: files of parent and draft, the engine, its threads and context, the longest draft, rounds."""

    model: Path
    draft: Path
    engine: str
    threads: int
    context: int
    longest: int
    rounds: int


@dataclass
class _Sums:
    """Of each round, seconds of decoding, and CPU seconds, with and without the draft; `tokens`: of a round."""

    tokens: int = 0
    passes: int = 0
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"alone": [], "drafted": []})
    cpu: dict[str, list[float]] = field(default_factory=lambda: {"alone": [], "drafted": []})


def steps_of(setting: Setting, answers: Sequence[Answer]) -> int:
    """How often `measure` advances."""
    return REPEATS + setting.rounds * len(answers)


def measure(setting: Setting, answers: Sequence[Answer], advance: Advance) -> DraftMeasured:
    """Measure the costs of a pass, choose the draft length by them, and run the answers by turns with and without.

    A speed-up is given only where every answer is the parent's own, token by token.
    """
    draft, batches = _costs(setting, answers[0], advance)
    sample, verified = sample_of(answers, setting.longest), {batch.tokens: batch.cost.ratio for batch in batches}
    expected = {
        gamma: speed_up(sample.tokens_per_pass(gamma).value, gamma, draft.ratio, verified[gamma + 1])
        for gamma in range(1, setting.longest + 1)
    }
    gamma = max(expected, key=lambda length: expected[length])
    sums, differences = _by_turns(setting, answers, gamma, advance)
    lossless = not differences
    return DraftMeasured(
        gamma=gamma, draft=draft, batches=batches, expected=expected[gamma], lossless=lossless,
        differences=differences, passes=sums.passes,
        counted_passes=sum(passes(answer.known, gamma) for answer in answers),
        speedup=_ratio(sums.seconds) if lossless else None, speedup_cpu=_ratio(sums.cpu) if lossless else None,
        alone_tok_s=_rate(sums, "alone"), drafted_tok_s=_rate(sums, "drafted") if lossless else None,
        rounds=setting.rounds,
    )  # fmt: skip


def _costs(setting: Setting, answer: Answer, advance: Advance) -> tuple[Ratio, list[Batch]]:
    """Time of a token of the draft, and of verifications, over that of a single token of the parent."""
    engine = setting.engine.removesuffix(DRAFT)
    sizes = range(2, setting.longest + 2)
    run = (answer.ids * (1 + setting.longest))[: setting.longest + 1]
    single: list[float] = []
    small: list[float] = []
    at_once: dict[int, list[float]] = {size: [] for size in sizes}
    with (
        Worker(engine, setting.model, setting.threads, setting.context) as parent,
        Worker(engine, setting.draft, setting.threads, setting.context) as draft,
    ):
        for worker in (parent, draft):
            worker.fill(answer.prompt)
            worker.time_batch(run)  # the first run allocates
        for _ in range(REPEATS):
            single.append(min(parent.time_batch(run[:1]) for _ in range(2)))
            small.append(min(draft.time_batch(run[:1]) for _ in range(2)))
            for size in sizes:
                at_once[size].append(parent.time_batch(run[:size]))
            advance(1)
    batches = [Batch(tokens=size, cost=Ratio(**paired_ratio(at_once[size], single))) for size in sizes]
    return Ratio(**paired_ratio(small, single)), batches


def _by_turns(
    setting: Setting, answers: Sequence[Answer], gamma: int, advance: Advance
) -> tuple[_Sums, list[Difference]]:
    sums, dice, differences = _Sums(tokens=sum(len(answer.ids) - 1 for answer in answers)), random.Random(0), []
    options = EngineOptions(draft=str(setting.draft))
    with (
        Worker(setting.engine, setting.model, setting.threads, setting.context) as alone,
        Worker(setting.engine, setting.model, setting.threads, setting.context, options) as drafted,
    ):
        sides = [("alone", alone), ("drafted", drafted)]
        for side in (alone, drafted):
            side.speculate(answers[0].prompt, len(answers[0].ids), gamma)  # warm-up
        for number in range(setting.rounds):
            for clock in (sums.seconds, sums.cpu):
                for name in clock:
                    clock[name].append(0.0)
            for answer in answers:
                for name, worker in dice.sample(sides, 2):
                    found = worker.speculate(answer.prompt, len(answer.ids), gamma)
                    sums.seconds[name][-1] += found["decode_s"]
                    sums.cpu[name][-1] += found["decode_cpu_s"]
                    if name == "drafted" and number == 0:
                        sums.passes += found["passes"]
                    if number == 0:
                        differences += _differing(answer, found["ids"])
                advance(1)
    return sums, differences


def _differing(answer: Answer, ids: list[int]) -> list[Difference]:
    place = next((i for i, pair in enumerate(zip(answer.ids, ids, strict=True)) if pair[0] != pair[1]), None)
    if place is None:
        return []
    return [
        Difference(
            kind=answer.kind, prompt=answer.id, position=place, alone=answer.ids[place], drafted=ids[place],
        )
    ]  # fmt: skip


def _ratio(clock: dict[str, list[float]]) -> Ratio:
    return Ratio(**paired_ratio(clock["alone"], clock["drafted"]))


def _rate(sums: _Sums, name: str) -> float:
    return sums.tokens / sorted(sums.seconds[name])[len(sums.seconds[name]) // 2]
