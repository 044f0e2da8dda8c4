"""Estimates of a stage's time and memory on this machine, before it begins. Pure functions of shapes and a recipe.

Time is computed from a stage's work: multiplications of its passes over the model (parameters x tokens x passes), work
in float64, bytes moved, and processes started. It is divided by rates that `measure_rates` measures in a third of a
second, and multiplied by FACTORS, which fit each stage to measurements (`benchmarks/estimate.py`, docs/progress.md). On
a machine that others use too, the time lies between LOW and HIGH times the estimate.

Memory is the most that this process and its children hold at once, pages of mapped files included.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from saap_edge.chain.amounts import SEARCH_WINDOWS, written_tokens
from saap_edge.chain.pruning_work import LOGITS, REFERENCE, PruningWork
from saap_edge.chain.rates import Estimate, Rates, Work, measure_rates
from saap_edge.chain.texts import HELDOUT_WINDOWS
from saap_edge.chat.instructions import ANSWER_TOKENS
from saap_edge.engines.llama_writer import slots_of
from saap_edge.formats import asked_by_llama_cpp, format_of
from saap_edge.model.spec import ModelSpec
from saap_edge.pruning.settings import EFFORTS
from saap_edge.recipe import Recipe
from saap_edge.writing.settings import FORMAT, LONGEST

__all__ = ["ESTIMATED", "HIGH", "LOW", "Estimate", "Rates", "estimate_stages", "measure_rates"]

ESTIMATED = {"write", "score", "bank", "plan", "prune", "recover", "dense", "export", "verify", "bench"}
LOW, HIGH = 0.6, 1.7  # times the estimate: the span in which measured times lay (docs/progress.md)
# Measured time over computed time, on models from 4.6 M to 135 M parameters.
FACTORS = {
    "write": 1.0, "score": 1.25, "bank": 1.4, "plan": 1.2, "prune": 1.1, "recover": 0.95, "bench": 1.2,
}  # fmt: skip
MULTIPLIED = 5  # weight matrices that training holds where it multiplies them: values, gradient, products
TRAINED = 1.9  # times as fast as in float32: small products, casts and norms gain less than passes over text
EVALUATED = 8  # times in each of recovery's two phases
BASE = 760 << 20  # Python with torch and transformers
CHILD = 150 << 20  # a runtime's process
WRITING = 1.5  # times the time of the same products in torch: few rows at a time
CHOOSING = 8  # times that a logit is read or written
DRAFTED = 1.25  # tokens that are written for each that is kept
START = 0.3  # seconds until a runtime's process has loaded a small model


def estimate_stages(names: Iterable[str], spec: ModelSpec, recipe: Recipe, rates: Rates) -> dict[str, Estimate]:
    """Estimates of the named stages that are in ESTIMATED. The others take hardly any time."""
    count = _Count(spec, recipe)
    work, held = count.work(), count.memory()
    return {
        name: Estimate(work[name].time(rates) * FACTORS.get(name, 1.0), held[name])
        for name in names
        if name in ESTIMATED
    }


class _Count(PruningWork):
    """Counts the work and the memory of every stage for a model of this shape."""

    def work(self) -> dict[str, Work]:
        export, bench = self._export(), self._bench()
        return {
            "write": self._write(), "score": self.score(), "bank": self.bank(), "plan": self.plan(),
            "prune": self.judged(1, self.repaired, 1.5 * HELDOUT_WINDOWS) + self.load() * 2, "recover": self._recover(),
            "dense": export, "export": export * self.kept, "verify": self._verify(), "bench": bench,
        }  # fmt: skip

    def memory(self) -> Mapping[str, float]:
        weights, state = 4.0 * self.parameters, 4.0 * self.window * self.hidden
        states = state * self.samples
        pruned = 4.0 * (self.parameters - (1 - self.kept) * self.projections)
        logits = 3 * 4.0 * min(LOGITS, 8 * self.window * self.vocabulary)
        largest = 4.0 * max(self.head, self.ffn * self.hidden)
        score, recover = (
            self.recipe.score,
            self.recipe.recover.resolved(round(self.kept * self.projections), int(self.hidden)),
        )
        # Where products are in bfloat16, autograd keeps that form of every float32 weight.
        scored = weights / 2 if score.dtype == "bfloat16" else weights + 2.0 * self.projections * self.halved
        activations = self._activations(-(-self.samples // score.batches), score.checkpointing)
        outputs = 4.0 * self.layers * self.hidden * (self.q + self.ffn)  # of o_proj and down_proj
        moments = 6 * 8.0 * self.ffn**2
        reference = 2 * 4.0 * min(REFERENCE, SEARCH_WINDOWS * self.window * self.vocabulary)
        prune = self.recipe.prune
        search = prune.method == "search" or (prune.method == "auto" and "search" in EFFORTS[prune.effort].auto)
        gated = 2.0 * self.projections * self.halved + self._activations(1, score.checkpointing)
        gated *= prune.method == "compresso"
        streams = 2.0 + EFFORTS[prune.effort].finalists * (prune.method == "auto" or search)
        repaired = state * self.repaired
        judged = (repaired + state * HELDOUT_WINDOWS) * (1 + streams) + repaired * self.ffn / self.hidden
        teacher = weights if recover.tokens and recover.distillation and recover.top is None else 0.0
        multiplied = MULTIPLIED * 4.0 * self.ffn * self.hidden if recover.adapter == "spp" else 0.0
        # All weights: what came in, their gradients, two moments and the best so far.
        whole = 5 * 4.0 * self.kept * self.projections if recover.adapter == "all" else 0.0
        tuned = pruned * 1.3 + multiplied + whole + self._activations(recover.batch, recover.checkpointing)
        trained = tuned if recover.tokens else 0.0
        importance = weights + states if self._important else 0.0
        both = max(sum(self._file(name, part) for part in (weights, pruned)) for name in self.recipe.export.formats)
        one = max(self._file(name, weights) for name in self.recipe.export.formats)
        held = {
            "write": max(CHILD + self._file(FORMAT, weights) + self._sequences(), 1.1 * largest),
            "score": scored * 1.05 + activations + 4.0 * self.projections * score.running_fisher,
            "bank": weights + 2 * states + moments,
            "plan": weights + max(judged + moments, logits, reference + outputs if search else 0.0, gated),
            "prune": weights + max(judged + moments, pruned + logits),
            "recover": teacher + max(trained, pruned * 1.6 + 3 * states + 4 * 4.0 * self.ffn**2, pruned + logits),
            "dense": max(1.1 * largest, importance), "export": max(1.1 * largest, importance),
            "verify": 2 * weights + CHILD + one, "bench": 2 * CHILD + both,
        }  # fmt: skip
        return {name: BASE + held_bytes for name, held_bytes in held.items()}

    def _write(self) -> Work:
        """A model that writes: every token is one of a product over SLOTS documents, and some are dropped."""
        if not self.recipe.data.written:
            return Work()
        sampled = DRAFTED * written_tokens(self.recipe)
        chosen = Work(bytes=sampled * CHOOSING * 4.0 * self.vocabulary)  # one logit after the other, in numpy
        exported = self.load() + Work(bytes=60 * 4.0 * self.parameters)
        return Work(sampled * 2 * (self.projections + self.head)) * WRITING + chosen + exported

    def _sequences(self) -> float:
        """Bytes of the KV cache of documents that are written at a time."""
        token = 4.0 * self.layers * self.kv  # keys and values in two bytes each
        return slots_of(LONGEST, int(token)) * LONGEST * token

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

    def _recover(self) -> Work:
        from saap_edge.model.arithmetic import uses_bfloat16

        recover = self.recipe.recover
        windows = recover.tokens / self.window
        gain = TRAINED if uses_bfloat16(recover.precision) else 1.0
        teacher = 1 if recover.distillation else 0
        # The student forward and backward (to inputs and adapters), and the teacher.
        trained = self.forward(windows) * ((3 + teacher) / gain)
        blocks = Work(bytes=windows / recover.batch * 20 * 4.0 * self.projections * (1 - recover.weights))
        measured = self.forward(HELDOUT_WINDOWS) * (7 + (2 * EVALUATED if recover.tokens else 0))
        rounded = Work(bytes=4 * 40 * 4.0 * self.projections)
        return trained + blocks + measured + rounded + self._codes() + self.load() * 6

    def _codes(self) -> Work:
        """Finding the first codes: GPTQ goes column by column, with scales from a search."""
        start, inputs = self.recipe.recover.start, 5 * self.hidden + self.q + self.ffn
        if start == "nearest":
            return Work(bytes=40 * 4.0 * self.projections)
        widths = (*[self.hidden] * 5, self.q, self.ffn)
        grams = 2 * self.samples * self.window * sum(width**2 for width in widths) * self.layers
        searched = Work(grams, bytes=200 * 4.0 * self.projections) + self.forward(2 * self.samples, head=False)
        if start == "weighted":
            return searched
        solved = 2 * sum(width**3 for width in widths) * self.layers
        return searched + Work(solved, bytes=64 * 4.0 * self.projections, seconds=2e-4 * inputs * self.layers)

    def _export(self) -> Work:
        work = Work(bytes=60 * 4.0 * self.parameters, seconds=0.1) * self.formats
        return work + (self.load() + self.forward(self.samples, head=False) if self._important else Work())

    def _verify(self) -> Work:
        passes = self.forward(6 * 48 / self.window)
        one = self.load() + Work(bytes=60 * 4.0 * self.parameters, seconds=START) + passes
        return one * (self.formats * (1 + self.kept))

    def _bench(self) -> Work:
        bench, both = self.recipe.bench, self.formats * (1 + self.kept)
        rounds = 3 + 6 + (bench.max_rounds or bench.rounds)
        decoded = rounds * bench.decode_tokens + len(bench.contexts) * bench.decode_tokens + bench.chat * ANSWER_TOKENS
        prompts = rounds * bench.prompt_tokens + 2 * sum(bench.contexts)
        started = Work(seconds=4 * START * 2 * self.formats)
        files = [self._file(name, 4.0 * self.parameters) for name in self.recipe.export.formats]
        read = Work(bytes=decoded * sum(files) / self.formats)
        passes = self.forward(prompts / self.window + bench.perplexity_windows)
        return (read + passes) * both + started
