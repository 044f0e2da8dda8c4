"""Estimates of a stage's time and memory on this machine, before it begins. Pure functions of shapes and a recipe.

Time is computed from a stage's work: multiplications of its passes over the model (parameters x tokens x passes), work
in float64, bytes moved, and processes started. It is divided by rates that `measure_rates` measures in a third of a
second, and multiplied by FACTORS, which fit each stage to measurements (`benchmarks/estimate.py`, docs/progress.md). On
a machine that others use too, the time lies between LOW and HIGH times the estimate.

Memory is the most that this process and its children hold at once, pages of mapped files included.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from saap_edge.formats import asked_by_llama_cpp, format_of
from saap_edge.model.spec import ModelSpec
from saap_edge.pruning.settings import EFFORTS
from saap_edge.recipe import Recipe

__all__ = ["ESTIMATED", "HIGH", "LOW", "Estimate", "Rates", "estimate_stages", "measure_rates"]

ESTIMATED = {"score", "bank", "plan", "prune", "recover", "dense", "export", "verify", "bench"}
LOW, HIGH = 0.6, 1.7  # times the estimate: the span in which measured times lay (docs/progress.md)
# Measured time over computed time, on models from 4.6 M to 135 M parameters.
FACTORS = {"score": 1.25, "bank": 1.4, "plan": 1.2, "prune": 1.1, "recover": 0.95, "bench": 1.2}
HELDOUT, SEARCHED = 40, 8  # windows: of held-out text, and those the search compares plans on
LOGITS, REFERENCE = 1 << 25, 1 << 26  # logits held at a time, and those of the dense model that a search keeps
LOOK, STARTS = 16, 6  # windows of a first look at many plans, and plans that a search starts from
BFLOAT16 = 2.0  # times as many operations a second as float32, where the processor multiplies in it
SHARED, GLANCED = 0.6, 0.6  # of a plan that is tried: layers that are run, and windows
PROBES, SUBLAYERS = 3, 2  # widths at which a search measures every sublayer
EVALUATED = 8  # times in each of recovery's two phases
BASE = 760 << 20  # Python with torch and transformers
CHILD = 150 << 20  # a runtime's process
START = 0.3  # seconds until a runtime's process has loaded a small model


@dataclass(frozen=True)
class Rates:
    """What this machine does in a second: float32 operations of matrix products, and bytes copied."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Estimate:
    """Seconds and bytes of memory."""

    seconds: float
    bytes: float


@dataclass(frozen=True)
class _Work:
    """float32 operations, float64 operations, bytes moved, and seconds that do not depend on the model."""

    flops: float = 0.0
    doubles: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: _Work) -> _Work:
        return _Work(
            self.flops + other.flops, self.doubles + other.doubles, self.bytes + other.bytes,
            self.seconds + other.seconds,
        )  # fmt: skip

    def __mul__(self, times: float) -> _Work:
        return _Work(self.flops * times, self.doubles * times, self.bytes * times, self.seconds * times)

    def time(self, rates: Rates) -> float:
        return self.flops / rates.flops + 2 * self.doubles / rates.flops + self.bytes / rates.bytes + self.seconds


@cache
def measure_rates(clock: Callable[[], float] = time.perf_counter) -> Rates | None:
    """Measure the rates of this process, with the threads that it uses. None where a GPU works: its rates are unknown.

    With one thread and `clock=time.process_time`, the rates are per second of CPU time, which others do not disturb.
    """
    import torch

    if torch.cuda.is_available():
        return None
    # No random numbers: they would change those that the run draws later.
    left, right, source = torch.full((1024, 1024), 0.5), torch.full((1024, 1024), 0.5), torch.full((1 << 24,), 0.5)
    target = torch.empty_like(source)
    products = _per_second(lambda: torch.mm(left, right), 0.2, clock)
    copies = _per_second(lambda: target.copy_(source), 0.1, clock)
    return Rates(products * 2 * 1024**3, copies * source.numel() * 4)


def _per_second(call: Callable[[], Any], seconds: float, clock: Callable[[], float]) -> float:
    call()
    start, calls = clock(), 0
    while clock() - start < seconds:
        call()
        calls += 1
    return calls / (clock() - start)


def estimate_stages(names: Iterable[str], spec: ModelSpec, recipe: Recipe, rates: Rates) -> dict[str, Estimate]:
    """Estimates of the named stages that are in ESTIMATED. The others take hardly any time."""
    count = _Count(spec, recipe)
    work, held = count.work(), count.memory()
    return {
        name: Estimate(work[name].time(rates) * FACTORS.get(name, 1.0), held[name])
        for name in names
        if name in ESTIMATED
    }


class _Count:
    """Counts the work and the memory of every stage for a model of this shape."""

    def __init__(self, spec: ModelSpec, recipe: Recipe) -> None:
        self.recipe, self.layers, self.hidden = recipe, len(spec.layers), spec.hidden
        self.projections, self.head = spec.layer_parameters(), spec.vocab_size * spec.hidden
        self.parameters = self.projections + self.head * (1 if spec.tied else 2)
        self.vocabulary, first = spec.vocab_size, spec.layers[0]
        self.q, self.ffn = first.heads * spec.head_dim, first.ffn
        self.window, self.samples = recipe.score.window, recipe.score.samples
        self.kept = 1 - recipe.prune.ratio
        self.formats = len(recipe.export.formats)

    def work(self) -> dict[str, _Work]:
        export, bench = self._export(), self._bench()
        return {
            "score": self._score(), "bank": self._bank(), "plan": self._plan(),
            "prune": self._judged(1, self.samples, 1.5 * HELDOUT) + self._load() * 2, "recover": self._recover(),
            "dense": export, "export": export * self.kept, "verify": self._verify(), "bench": bench,
        }  # fmt: skip

    def memory(self) -> Mapping[str, float]:
        weights, states = 4.0 * self.parameters, 4.0 * self.samples * self.window * self.hidden
        pruned = 4.0 * (self.parameters - (1 - self.kept) * self.projections)
        logits = 3 * 4.0 * min(LOGITS, 8 * self.window * self.vocabulary)
        largest = 4.0 * max(self.head, self.ffn * self.hidden)
        score, recover = self.recipe.score, self.recipe.recover
        scored = weights / 2 if score.dtype == "bfloat16" else weights
        activations = self._activations(-(-self.samples // score.batches), score.checkpointing)
        outputs = 4.0 * self.layers * self.hidden * (self.q + self.ffn)  # of o_proj and down_proj
        moments = 6 * 8.0 * self.ffn**2
        reference = 2 * 4.0 * min(REFERENCE, SEARCHED * self.window * self.vocabulary)
        prune = self.recipe.prune
        search = prune.method == "search" or (prune.method == "auto" and "search" in EFFORTS[prune.effort].auto)
        streams = 2.0 + EFFORTS[prune.effort].finalists * (prune.method == "auto" or search)
        judged = states * (1 + HELDOUT / self.samples) * (1 + streams) + states * self.ffn / self.hidden
        teacher = weights if recover.tokens and recover.distillation and recover.top is None else 0.0
        trained = pruned * 1.3 + self._activations(recover.batch, recover.checkpointing) if recover.tokens else 0.0
        importance = weights + states if self._important else 0.0
        both = max(sum(self._file(name, part) for part in (weights, pruned)) for name in self.recipe.export.formats)
        one = max(self._file(name, weights) for name in self.recipe.export.formats)
        held = {
            "score": scored * 1.05 + activations + 4.0 * self.projections * score.running_fisher,
            "bank": weights + 2 * states + moments,
            "plan": weights + max(judged + moments, logits, reference + outputs if search else 0.0),
            "prune": weights + max(judged + moments, pruned + logits),
            "recover": teacher + max(trained, pruned * 1.6 + 3 * states + 4 * 4.0 * self.ffn**2, pruned + logits),
            "dense": max(1.1 * largest, importance), "export": max(1.1 * largest, importance),
            "verify": 2 * weights + CHILD + one, "bench": 2 * CHILD + both,
        }  # fmt: skip
        return {name: BASE + held_bytes for name, held_bytes in held.items()}

    @property
    def _important(self) -> bool:
        return asked_by_llama_cpp(self.recipe.export.formats)

    def _file(self, artifact_format: str, weights: float) -> float:
        """Bytes that a runtime holds of a model whose float32 weights take `weights` bytes."""
        return weights * format_of(artifact_format).held

    def _activations(self, windows: float, checkpointing: bool) -> float:
        """Bytes that autograd keeps: about 4 numbers a channel and 7 a hidden unit, of every token and layer."""
        tokens = windows * self.window
        layer = 4.0 * (4 * self.ffn + 5 * self.hidden + 2 * self.q)
        kept = 4.0 * self.hidden * self.layers + layer if checkpointing else layer * self.layers
        return tokens * kept + 3 * 4.0 * min(1 << 24, tokens * self.vocabulary)

    def _forward(self, windows: float, head: bool = True) -> _Work:
        tokens = windows * self.window
        attention = 4 * self.window * self.q * self.layers
        logits = 5 * 4.0 * self.vocabulary if head else 0.0  # written, and read for their logarithms
        return _Work(
            tokens * (2 * (self.projections + self.head * head) + attention),
            bytes=tokens * (logits + self.layers * 4.0 * (12 * self.hidden + 6 * self.ffn)),
        )

    def _load(self) -> _Work:
        return _Work(bytes=4 * 4.0 * self.parameters, seconds=0.3)

    def _score(self) -> _Work:
        score = self.recipe.score
        passes = self._read(self.samples) * (4 if score.checkpointing else 3)
        reductions = _Work(bytes=score.batches * 6 * 4.0 * self.projections)
        return self._load() + passes + self._read(self.samples, head=True) + reductions

    def _grams(self, share: float = 1.0) -> _Work:
        """Second moments of the inputs of o_proj and down_proj, and their products with the outputs."""
        widths = (self.q * share, self.ffn * share)
        return _Work(2 * self.samples * self.window * self.layers * sum(w * (w + self.hidden) for w in widths))

    def _bank(self) -> _Work:
        solved = 0.0
        for width in (self.q, self.ffn):
            # An inverse, the greedy order's blocks, a factor and its inverse, and the repaired widths.
            solved += 4 * width**3 + 4 * width**2 * self.hidden
        greedy = _Work(seconds=1e-3 * self.layers * min(256, self.ffn))
        passes = self._read(self.samples) + self._grams()
        return self._load() + passes + _Work(doubles=solved * self.layers) + greedy

    def _read(self, windows: float, head: bool = False) -> _Work:
        """A pass over text, in the recipe's arithmetic."""
        from saap_edge.model.arithmetic import uses_bfloat16

        work = self._forward(windows, head)
        return replace(work, flops=work.flops / (BFLOAT16 if uses_bfloat16(self.recipe.score.precision) else 1))

    def _judged(self, plans: float, samples: float, heldout: float) -> _Work:
        """Plans that are repaired and judged together, and the dense model beside them."""
        samples = samples if self.recipe.prune.repair else 0
        widths = (self.kept * self.q, self.kept * self.ffn)
        # The repaired outputs, their moments, and what is solved.
        moments = self._grams(self.kept) * (1.3 * samples / self.samples)
        solved = self.layers * sum(width**3 / 3 + 4 * width**2 * self.hidden for width in widths)
        head = self._read(heldout, head=True) * (plans + 1)
        each = moments + _Work(doubles=solved if samples else 0.0)
        return self._read(samples) * (plans + 1) + head + each * plans

    def _plan(self) -> _Work:
        prune = self.recipe.prune
        effort = EFFORTS[prune.effort]
        tried = STARTS + (effort.evaluations if prune.evaluations is None else prune.evaluations)
        made = effort.auto if prune.method == "auto" else dict.fromkeys((prune.method, "uniform"))
        work, plans = self._load(), len(made)
        if "search" in made:
            windows = min(SEARCHED, max(1, REFERENCE // (self.window * self.vocabulary)))
            # Layers before the first change are not run again, and bad plans see two windows.
            run = SHARED * (tried * GLANCED + PROBES * SUBLAYERS * self.layers)
            compared = _Work(bytes=6 * 4.0 * windows * self.window * self.vocabulary + 4.0 * self.projections)
            work += (self._read(windows, head=True) + compared) * run
            plans += effort.found - 1
        if plans > effort.finalists + 1:
            work += self._judged(plans, LOOK, LOOK)
            plans = effort.finalists + 1
        work += self._judged(plans, self.samples, HELDOUT)
        if prune.method == "policy-gradient":
            work += self._forward(4) * (prune.evaluations or 200)
        if prune.rounds > 1:
            work += (self._score() + self._bank() + self._judged(1, self.samples, 0)) * prune.rounds
        return work

    def _recover(self) -> _Work:
        recover = self.recipe.recover
        windows = recover.tokens / self.window
        teacher = 1 if recover.distillation else 0
        # The student forward and backward (to inputs and adapters), and the teacher.
        trained = self._forward(windows) * (3 + teacher)
        blocks = _Work(bytes=windows / recover.batch * 20 * 4.0 * self.projections * (1 - recover.weights))
        measured = self._forward(HELDOUT) * (7 + (2 * EVALUATED if recover.tokens else 0))
        rounded = _Work(bytes=4 * 40 * 4.0 * self.projections)
        return trained + blocks + measured + rounded + self._codes() + self._load() * 6

    def _codes(self) -> _Work:
        """Finding the first codes: GPTQ goes column by column, with scales from a search."""
        start, inputs = self.recipe.recover.start, 5 * self.hidden + self.q + self.ffn
        if start == "nearest":
            return _Work(bytes=40 * 4.0 * self.projections)
        widths = (*[self.hidden] * 5, self.q, self.ffn)
        grams = 2 * self.samples * self.window * sum(width**2 for width in widths) * self.layers
        searched = _Work(grams, bytes=200 * 4.0 * self.projections) + self._forward(2 * self.samples, head=False)
        if start == "weighted":
            return searched
        solved = 2 * sum(width**3 for width in widths) * self.layers
        return searched + _Work(solved, bytes=64 * 4.0 * self.projections, seconds=2e-4 * inputs * self.layers)

    def _export(self) -> _Work:
        work = _Work(bytes=60 * 4.0 * self.parameters, seconds=0.1) * self.formats
        return work + (self._load() + self._forward(self.samples, head=False) if self._important else _Work())

    def _verify(self) -> _Work:
        passes = self._forward(6 * 48 / self.window)
        one = self._load() + _Work(bytes=60 * 4.0 * self.parameters, seconds=START) + passes
        return one * (self.formats * (1 + self.kept))

    def _bench(self) -> _Work:
        bench, both = self.recipe.bench, self.formats * (1 + self.kept)
        rounds = 3 + 6 + (bench.max_rounds or bench.rounds)
        decoded = rounds * bench.decode_tokens + len(bench.contexts) * bench.decode_tokens
        prompts = rounds * bench.prompt_tokens + 2 * sum(bench.contexts)
        started = _Work(seconds=4 * START * 2 * self.formats)
        files = [self._file(name, 4.0 * self.parameters) for name in self.recipe.export.formats]
        read = _Work(bytes=decoded * sum(files) / self.formats)
        passes = self._forward(prompts / self.window + bench.perplexity_windows)
        return (read + passes) * both + started
