"""Measuring artifacts by turns. Each runs in a child process that does nothing else.

Definitions. Time to first token: from an empty cache until the first token is chosen, prefill included. Prefill rate:
prompt tokens over that time. Decode rate: one over the median seconds of a step, per round. Load time: opening the
artifact in a fresh process, the runtime's import not counted. Peak RSS: the highest resident memory of a process that
imported the runtime, loaded the artifact and ran one round; peak PSS: the same with pages that other processes share
counted in part. docs/measuring.md has the rest.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import numpy as np

from saap_edge.documents.bench import Bench
from saap_edge.engines.options import EngineOptions
from saap_edge.engines.worker import Worker
from saap_edge.errors import SaapError
from saap_edge.machine.facts import machine_facts
from saap_edge.machine.sensors import sensors
from saap_edge.measuring.builds import Runner
from saap_edge.measuring.conditions import BenchConditions, Subject
from saap_edge.measuring.contexts import context_steps, random_tokens, with_contexts
from saap_edge.measuring.cores import draw_cores, fastest_cores
from saap_edge.measuring.document import Samples, merge_documents, write_document
from saap_edge.measuring.energy import Meter, find_meter
from saap_edge.measuring.instructions import find_counter, instructions_per_token
from saap_edge.measuring.statistics import has_settled

__all__ = ["BenchConditions", "Harness", "Subject", "measure", "steps_of"]

LOADS = 3
# Warm-up: a Raspberry Pi 5 takes 3 to 4 rounds to come to its speed; a machine that others use may never settle.
SETTLED, TOLERANCE, MOST = 3, 0.05, 10
WARM_STEPS = 2  # of decoding, behind a prompt, in a process that is new in each round

Progress = Callable[[int], None]


def steps_of(subjects: int, conditions: BenchConditions) -> int:
    """Steps that `measure` reports in all to `progress`."""
    return subjects * (LOADS + 1 + MOST + conditions.looks[-1] + context_steps(conditions))


def measure(
    subjects: Sequence[Subject], comparisons: Sequence[tuple[str, str]], conditions: BenchConditions,
    progress: Progress = lambda steps: None, decided: Callable[[Bench], bool] = lambda document: True,
) -> Bench:  # fmt: skip
    """Measure everything and return the bench document (schema 2).

    Subjects that are compared, directly or through others, run by turns. A subject that is compared with nothing runs
    alone, so that no more artifacts than needed are in memory. Where `conditions` allow more rounds, rounds are added
    while `decided`, given the document so far, says no. Raises SaapError when an artifact does not run.
    """
    documents = []
    for group in _groups(subjects, comparisons):
        names = {subject.name for subject in group}
        with Harness(group, [pair for pair in comparisons if pair[0] in names], conditions, progress) as harness:
            harness.warm_up()
            document = _measure_group(harness, decided, progress)
        documents.append(with_contexts(document, group, conditions, progress))
    return merge_documents(documents)


def _measure_group(harness: Harness, decided: Callable[[Bench], bool], progress: Progress) -> Bench:
    """Rounds from look to look, until all is decided or the last look is taken."""
    done, looks = 0, harness.conditions.looks
    for look in looks:
        harness.run(look - done)
        done, document = look, harness.document()
        if decided(document):
            break
    progress(len(harness.subjects) * (looks[-1] - done))
    return document


class Harness:
    """Artifacts that are measured by turns, each in a child process that is open inside `with`.

    `comparisons` are (base, candidate) by the subjects' names. Call `warm_up` first, then `run` for rounds, as often as
    needed; `document` gives the bench document so far. `progress` is called with the number of steps done. Raises
    SaapError when an artifact does not run.
    """

    def __init__(
        self, subjects: Sequence[Subject], comparisons: Sequence[tuple[str, str]], conditions: BenchConditions,
        progress: Progress = lambda steps: None,
    ) -> None:  # fmt: skip
        self.subjects = {subject.name: subject for subject in subjects}
        if len(self.subjects) < len(subjects):
            raise ValueError("subjects need different names")
        self.comparisons, self.conditions = list(comparisons), conditions
        self._progress = progress
        self._samples = {name: Samples() for name in self.subjects}
        self._warm_up: dict[str, Any] = {"rounds": 0, "stable": False, "tolerance": TOLERANCE, "most": MOST}
        self._rounds, self._dice = 0, random.Random()
        self._cores = fastest_cores(conditions.threads)
        self._drawn: set[int] | None = None
        self._stack = ExitStack()
        self._workers: dict[str, Runner] = {}  # none with fresh processes
        self._loaded: dict[str, dict[str, Any]] = {}
        self._machine: dict[str, Any] = {}
        self._meter: Meter | None = None

    def __enter__(self) -> Harness:
        """Measure loading and memory in fresh processes. Then open the processes of the rounds; measure perplexity."""
        self._meter = find_meter()
        self._machine = machine_facts() | {"energy": self._meter and self._meter.name, "before": sensors()}
        with ExitStack() as stack:
            for number in range(LOADS):
                for subject in self._in_turn(number):
                    self._fresh_load(subject)
                    self._progress(1)
            for name, subject in self.subjects.items():
                with ExitStack() as short:
                    worker = (short if self.conditions.fresh else stack).enter_context(self._open(subject))
                    self._loaded[name] = worker.loaded
                    self._samples[name].perplexity = self._perplexity(subject, worker)
                    if not self.conditions.fresh:
                        self._workers[name] = worker
                if self.conditions.instructions:
                    self._samples[name].instructions = instructions_per_token(subject, self.conditions)
                self._progress(1)
            if self._meter:
                stack.enter_context(self._meter)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def warm_up(self) -> bool:
        """Run rounds that do not count, until all decode speeds have settled or MOST are run. Returns if they have.

        Fresh processes never settle as one that goes on does: then SETTLED rounds warm the board up.
        """
        steps: dict[str, list[float]] = {name: [] for name in self.subjects}
        settled, most = False, SETTLED if self.conditions.fresh else MOST
        self._warm_up["most"] = most
        while not settled and self._warm_up["rounds"] < most:
            self._share_cores()
            for subject in self._in_turn(self._warm_up["rounds"]):
                steps[subject.name].append(float(np.median(self._time(subject)["decode_s"])))
            self._warm_up["rounds"] += 1
            settled = all(has_settled(samples, SETTLED, TOLERANCE) for samples in steps.values())
        self._progress(len(self.subjects) * (MOST - self._warm_up["rounds"]))
        self._warm_up["stable"] = settled
        return settled

    def run(self, rounds: int) -> None:
        """Run rounds of all subjects, each in a random order and on random cores. So a disturbance hits every subject
        with the same chance, whatever its rhythm, which the interval of a ratio relies on."""
        for _ in range(rounds):
            self._share_cores()
            for subject in self._by_lot():
                timing = self._time(subject)
                at = timing.get("decode_at")
                joules = self._meter.joules(*at) if self._meter and at else None
                self._samples[subject.name].add(timing, joules)
            self._rounds += 1

    def document(self) -> Bench:
        """The bench document of the rounds so far. Raises SaapError when there are none."""
        if not self._rounds:
            raise SaapError("nothing was measured yet: run some rounds")
        conditions = self.conditions.as_dict() | {"rounds": self._rounds, "warm_up": dict(self._warm_up)}
        conditions["cores"] = self._cores or None  # to choose from; None: the system placed the threads
        conditions["counter"] = find_counter() if self.conditions.instructions else None  # of instructions
        machine, subjects = self._machine | {"after": sensors()}, list(self.subjects.values())
        told = self._loaded.values()
        conditions["spinning"] = next((each["spinning"] for each in told if "spinning" in each), None)
        return write_document(machine, conditions, subjects, self._loaded, self._samples, self.comparisons)

    def _in_turn(self, number: int) -> list[Subject]:
        subjects = list(self.subjects.values())
        return subjects if number % 2 == 0 else subjects[::-1]

    def _by_lot(self) -> list[Subject]:
        subjects = list(self.subjects.values())
        return self._dice.sample(subjects, len(subjects))

    def _open(self, subject: Subject) -> Runner:
        told = self.conditions
        return subject.build.open(subject.engine, subject.path, told.threads, told.context, told.options)

    def _perplexity(self, subject: Subject, opened: Runner) -> float | None:
        """By the process that is open, or, where it has a micro-batch that would move it, by one of its own."""
        if self.conditions.ubatch is None or not self.conditions.windows:
            return _perplexity(opened, self.conditions.windows)
        told = self.conditions
        with Worker(subject.engine, subject.path, told.threads, told.context, EngineOptions(kv=told.kv)) as worker:
            return _perplexity(worker, told.windows)

    def _fresh_load(self, subject: Subject) -> None:
        """Measure load time and peak memory in a process that did nothing before, while no other one is open."""
        with self._open(subject) as worker:
            if worker.loaded["seconds"] is None:
                return
            worker.time(random_tokens(worker, self.conditions.prompt_tokens), self.conditions.decode_tokens)
            self._samples[subject.name].add_load(worker.loaded["seconds"], worker.memory())

    def _share_cores(self) -> None:
        """The cores of a round. Fresh processes are moved there when they are open."""
        self._drawn = draw_cores(self._cores, self.conditions.threads, self._dice) if self._cores else None
        for worker in self._workers.values():
            self._pin(worker)

    def _pin(self, worker: Runner) -> None:
        if self._drawn:
            worker.pin(self._drawn)

    def _time(self, subject: Subject) -> dict[str, Any]:
        if self.conditions.fresh:
            with self._open(subject) as worker:
                self._pin(worker)
                if isinstance(worker, Worker):  # other runners warm themselves up
                    worker.time(random_tokens(worker, self.conditions.prompt_tokens), WARM_STEPS)
                timing = self._timed(worker)
                self._loaded[subject.name] = worker.loaded
        else:
            timing = self._timed(self._workers[subject.name])
        self._progress(1)
        return timing

    def _timed(self, worker: Runner) -> dict[str, Any]:
        return worker.time(random_tokens(worker, self.conditions.prompt_tokens), self.conditions.decode_tokens)


def _groups(subjects: Sequence[Subject], comparisons: Sequence[tuple[str, str]]) -> Iterator[list[Subject]]:
    """Groups of subjects that are connected by comparisons, in their order."""
    group_of = {subject.name: subject.name for subject in subjects}
    for pair in comparisons:
        first, second = (group_of[name] for name in pair)
        group_of = {name: first if group == second else group for name, group in group_of.items()}
    for group in dict.fromkeys(group_of.values()):
        yield [subject for subject in subjects if group_of[subject.name] == group]


def _perplexity(worker: Runner, windows: list[list[int]]) -> float | None:
    if not windows or not isinstance(worker, Worker):
        return None
    nll, tokens = worker.nll(windows)
    return math.exp(nll / tokens) if nll / tokens < 700 else None
