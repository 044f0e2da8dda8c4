"""Decoding without a pause for minutes: does a board keep its speed, or does it slow itself down as it gets hot?

A single artifact runs, from the board's present state on, without warm-up: two would heat the board for one another.
The speed of the first and of the last tenth of the time are compared. Clock, temperature and throttling are read while
it decodes, by a thread of this process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from saap_edge.documents.bench import Bench, BenchedArtifact, Conditions, Machine, Metrics
from saap_edge.documents.measured import Summary, Sustained, Window
from saap_edge.errors import SaapError
from saap_edge.machine.facts import machine_facts
from saap_edge.machine.sensors import sensors
from saap_edge.measuring.conditions import BenchConditions, Subject
from saap_edge.measuring.contexts import random_tokens
from saap_edge.measuring.document import counts, now_utc, runtime_of, summary_of
from saap_edge.measuring.statistics import CONFIDENCE, scatter, summary
from saap_edge.progress import Bar

__all__ = ["Block", "State", "bench_sustained", "sustained_of"]

PART = 0.1  # of the time: what is compared at its beginning and its end
LEAST = 7  # blocks in such a part: of fewer, an interval would have to assume how they are distributed
BLOCKS = 600  # at most: a block is as many rounds as last 3 seconds of half an hour
WINDOWS = 30  # rows of the course that the document keeps
DROPPED = 0.95  # a clock below this share of what it was at the beginning is a clock that was lowered
SLOWS = 0xE  # a Raspberry Pi's flags of now: clock capped, throttled, soft temperature limit

Sense = Callable[[], Mapping[str, Any]]


@dataclass(frozen=True)
class Block:
    """Some rounds of decoding, one after the other.

    Attributes:
        at: seconds from the beginning to the middle of the block.
        step_s: median step, s.
        p95_s: 95th percentile of its steps, s.
        cpu_share: of the threads' time, the share in which they had a CPU.
    """

    at: float
    step_s: float
    p95_s: float
    cpu_share: float


@dataclass(frozen=True)
class State:
    """What the board told `at` seconds after the beginning, as `machine.sensors` returns it."""

    at: float
    told: Mapping[str, Any]


class _Watch:
    """Reads the sensors every few seconds while it is open."""

    def __init__(self, sense: Sense, seconds: float) -> None:
        self.states: list[State] = []
        self._sense, self._seconds = sense, seconds
        self._stop, self._start = threading.Event(), time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            at = time.monotonic() - self._start
            self.states.append(State(at, self._sense()))
            if self._stop.wait(self._seconds):
                return


def bench_sustained(
    subject: Subject, conditions: BenchConditions, minutes: float, bar: Bar, sense: Sense = sensors
) -> Bench:
    """Decode for so many minutes, always at the depth of the prompt, and return the bench document.

    Args:
        subject: the artifact.
        conditions: threads, the depth (prompt_tokens), and how many tokens are decoded before they are forgotten.
        minutes: how long; fractions are minutes, too.
        bar: shows progress, in seconds, with the speed and the board's state.
        sense: reads the board's state.

    Raises SaapError when the artifact does not run, or when the time is too short for its speed.
    """
    seconds, facts, before = 60 * minutes, machine_facts(), dict(sense())
    room = conditions.prompt_tokens + conditions.decode_tokens
    with subject.build.worker(subject.engine, subject.path, conditions.threads, room) as worker:
        worker.fill(random_tokens(worker, conditions.prompt_tokens))
        with bar(f"bench: {minutes:g} minutes of decoding", seconds) as advance:
            every = min(5.0, max(0.05, seconds / BLOCKS))
            with _Watch(sense, every) as watch:
                blocks = _decode(lambda: worker.time_steps(0, conditions.decode_tokens), seconds, conditions.threads,
                                 lambda done, rate: advance(done, _note(rate, watch.states)))  # fmt: skip
        loaded = worker.loaded
    found = sustained_of(blocks, watch.states, seconds)
    told = conditions.as_dict() | {"rounds": len(blocks), "looks": [], "confidence": CONFIDENCE, "minutes": minutes}
    machine = facts | {"energy": None, "before": before, "after": dict(sense())}
    return Bench(
        measured_at=now_utc(), machine=Machine.model_validate(machine), conditions=Conditions.model_validate(told),
        comparisons=[], artifacts=[_artifact(subject, loaded, blocks, found, conditions)],
    )  # fmt: skip


def _decode(
    once: Callable[[], dict[str, list[float]]], seconds: float, threads: int, progress: Callable[[float, float], None]
) -> list[Block]:
    """Rounds until the time is over, in blocks. `progress` is called with the seconds and the rate of each block."""
    blocks: list[Block] = []
    start = time.monotonic()
    shown = 0.0
    while (began := time.monotonic() - start) < seconds:
        steps: list[float] = []
        cpu, now = 0.0, began
        while now - began < seconds / BLOCKS or not steps:
            timed = once()
            steps += timed["decode_s"]
            cpu += sum(timed["decode_cpu_s"])
            now = time.monotonic() - start
        share = cpu / sum(steps) / threads
        blocks.append(Block((began + now) / 2, float(np.median(steps)), float(np.percentile(steps, 95)), share))
        done = min(now, seconds)
        progress(done - shown, 1 / blocks[-1].step_s)
        shown = done
    return blocks


def sustained_of(blocks: Sequence[Block], states: Sequence[State], seconds: float) -> Sustained:
    """First against last, the board's state beside, and the course.

    The ratio's interval is made of those of both medians, each at 97.5 %: it holds whatever the noise is like, as long
    as blocks do not depend on each other. Raises SaapError where a part has fewer than LEAST blocks.
    """
    if len(blocks) < 2 * LEAST:
        raise SaapError(
            f"{len(blocks)} rounds in {seconds / 60:g} minutes are too few to compare the first with the last: give "
            f"more --minutes or a smaller --decode, for at least {2 * LEAST}"
        )
    edge = max(PART * seconds, blocks[LEAST - 1].at)
    late = min(seconds - PART * seconds, blocks[-LEAST].at)
    first, last = (
        Summary(**summary([1 / block.step_s for block in part], 1 - (1 - CONFIDENCE) / 2))
        for part in ([block for block in blocks if block.at <= edge], [block for block in blocks if block.at >= late])
    )
    ends = [_state(states, 0, edge), _state(states, late, seconds)]
    return Sustained(
        seconds=seconds, blocks=len(blocks), part_s=edge, first_tok_s=first, last_tok_s=last,
        pct=Summary(
            median=100 * last.median / first.median, low=100 * last.low / first.high, high=100 * last.high / first.low
        ),
        first_mhz=ends[0]["mhz"], last_mhz=ends[1]["mhz"], first_temperature_c=ends[0]["temperature_c"],
        last_temperature_c=ends[1]["temperature_c"],
        hottest_c=max(_known(states, "temperature_c"), default=None), throttled=_throttled(states, ends),
        course=_course(blocks, states, seconds),
    )  # fmt: skip


def _known(states: Sequence[State], name: str) -> list[float]:
    return [float(state.told[name]) for state in states if state.told.get(name) is not None]


def _state(states: Sequence[State], begin: float, end: float) -> dict[str, float | None]:
    """Medians of clock and temperature between two times; None where the board did not tell."""
    inside = [state for state in states if begin <= state.at <= end]
    found = {name: _known(inside, name) for name in ("mhz", "temperature_c")}
    return {name: float(np.median(values)) if values else None for name, values in found.items()}


def _throttled(states: Sequence[State], ends: Sequence[Mapping[str, float | None]]) -> bool | None:
    """Whether the board slowed itself down, by its own word or by its clock; None where it tells neither.

    A clock that never moves tells nothing: a virtual machine states its host's nominal one.
    """
    words = [state.told["throttled"] for state in states if state.told.get("throttled") is not None]
    if words and (len(set(words)) > 1 or any(isinstance(word, str) and int(word, 16) & SLOWS for word in words)):
        return True
    was, now = (end["mhz"] for end in ends)
    if was and now and now < DROPPED * was:
        return True
    return False if words or len(set(_known(states, "mhz"))) > 1 else None


def _course(blocks: Sequence[Block], states: Sequence[State], seconds: float) -> list[Window]:
    """At most WINDOWS rows, of equal length."""
    rows, length = [], seconds / min(WINDOWS, len(blocks))
    for begin in np.arange(0, seconds, length):
        own = [block for block in blocks if begin <= block.at < begin + length]
        if own:
            state = _state(states, begin, begin + length)
            rows.append(Window(
                at_s=float(begin), decode_tok_s=float(1 / np.median([block.step_s for block in own])),
                cpu_share=float(np.mean([block.cpu_share for block in own])), **state,
            ))  # fmt: skip
    return rows


def _note(rate: float, states: Sequence[State]) -> str:
    """The speed and the board's state in words."""
    told = states[-1].told if states else {}
    units = {"mhz": "MHz", "temperature_c": "°C"}
    parts = [f"{told[name]:.0f} {unit}" for name, unit in units.items() if told.get(name) is not None]
    return ", ".join([f"{rate:.1f} tok/s", *parts])


def _artifact(
    subject: Subject, loaded: Mapping[str, Any], blocks: Sequence[Block], found: Sustained, conditions: BenchConditions
) -> BenchedArtifact:
    """The artifact with what such a run tells of it."""
    rates = [1 / block.step_s for block in blocks]
    metrics = Metrics(
        decode_tok_s=summary_of(rates), itl_p95_ms=summary_of([1000 * block.p95_s for block in blocks]),
        sustained=found, sustained_pct=found.pct, sustained_tok_s=found.last_tok_s, noise=scatter(rates),
        cpu_share=float(np.mean([block.cpu_share for block in blocks])),
        **counts(subject, loaded, conditions.prompt_tokens + conditions.decode_tokens // 2),
    )  # fmt: skip
    return BenchedArtifact(
        name=subject.name, role=subject.role, format=subject.format, engine=subject.engine, model=subject.model,
        runtime=runtime_of(loaded, subject.build.elsewhere), metrics=metrics,
    )  # fmt: skip
