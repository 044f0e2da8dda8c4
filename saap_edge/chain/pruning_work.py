"""The work of score, bank, plan and prune on a model of some shape."""

from __future__ import annotations

from dataclasses import replace

from saap_edge.chain.amounts import SEARCH_WINDOWS
from saap_edge.chain.rates import Work
from saap_edge.chain.texts import HELDOUT_WINDOWS
from saap_edge.model.spec import ModelSpec
from saap_edge.pruning.settings import EFFORTS, GLANCE, LEARNERS, LEARNT, LOOK, STARTS
from saap_edge.recipe import Recipe

__all__ = ["LOGITS", "REFERENCE", "PruningWork"]

LOGITS, REFERENCE = 1 << 25, 1 << 26  # logits held at a time, and those of the dense model that a search keeps
BFLOAT16 = 2.0  # times as many operations a second as float32, where the processor multiplies in it
SHARED, GLANCED = 0.6, 0.6  # of a plan that is tried: layers that are run, and windows
SUBLAYERS = 2  # of a layer, that a search measures


class PruningWork:
    """What the stages up to the pruned model do."""

    def __init__(self, spec: ModelSpec, recipe: Recipe) -> None:
        self.recipe, self.layers, self.hidden = recipe, len(spec.layers), spec.hidden
        self.projections, self.head = spec.layer_parameters(), spec.vocab_size * spec.hidden
        self.parameters = self.projections + self.head * (1 if spec.tied else 2)
        self.vocabulary, first = spec.vocab_size, spec.attention
        self.q, self.ffn = first.heads * spec.head_dim, spec.widest_ffn
        self.kv = first.kv_heads * spec.head_dim
        self.window, self.samples = recipe.score.window, recipe.score.samples
        self.repaired = recipe.prune.samples if recipe.prune.repair else 0
        self.kept = 1 - recipe.prune.ratio
        self.formats = len(recipe.export.formats)

    def forward(self, windows: float, head: bool = True) -> Work:
        tokens = windows * self.window
        attention = 4 * self.window * self.q * self.layers
        logits = 5 * 4.0 * self.vocabulary if head else 0.0  # written, and read for their logarithms
        return Work(
            tokens * (2 * (self.projections + self.head * head) + attention),
            bytes=tokens * (logits + self.layers * 4.0 * (12 * self.hidden + 6 * self.ffn)),
        )

    def load(self) -> Work:
        return Work(bytes=4 * 4.0 * self.parameters, seconds=0.3)

    def score(self) -> Work:
        score = self.recipe.score
        passes = self.read(self.samples) * (4 if score.checkpointing else 3)
        reductions = Work(bytes=score.batches * 6 * 4.0 * self.projections)
        return self.load() + passes + self.read(self.samples, head=True) + reductions

    def grams(self, share: float = 1.0) -> Work:
        """Second moments of the inputs of o_proj and down_proj, and their products with the outputs."""
        widths = (self.q * share, self.ffn * share)
        return Work(2 * self.samples * self.window * self.layers * sum(w * (w + self.hidden) for w in widths))

    def bank(self) -> Work:
        solved = 0.0
        for width in (self.q, self.ffn):
            # An inverse, the greedy order's blocks, a factor and its inverse, and the repaired widths.
            solved += 4 * width**3 + 4 * width**2 * self.hidden
        greedy = Work(seconds=1e-3 * self.layers * min(256, self.ffn))
        passes = self.read(self.samples) + self.grams()
        return self.load() + passes + Work(doubles=solved * self.layers) + greedy

    def read(self, windows: float, head: bool = False) -> Work:
        """A pass over text, in the recipe's arithmetic."""
        work = self.forward(windows, head)
        return replace(work, flops=work.flops / (BFLOAT16 if self.halved else 1))

    @property
    def halved(self) -> bool:
        """Passes over text multiply in bfloat16."""
        from saap_edge.model.arithmetic import uses_bfloat16

        return uses_bfloat16(self.recipe.score.precision)

    def judged(self, plans: float, samples: float, heldout: float) -> Work:
        """Plans that are repaired and judged together, and the dense model beside them."""
        samples = min(samples, self.repaired)
        widths = (self.kept * self.q, self.kept * self.ffn)
        # The repaired outputs, their moments, and what is solved.
        moments = self.grams(self.kept) * (1.3 * samples / self.samples)
        solved = self.layers * sum(width**3 / 3 + 4 * width**2 * self.hidden for width in widths)
        head = self.read(heldout, head=True) * (plans + 1)
        each = moments + Work(doubles=solved if samples else 0.0)
        return self.read(samples) * (plans + 1) + head + each * plans

    def plan(self) -> Work:
        prune = self.recipe.prune
        effort = EFFORTS[prune.effort]
        tried = len(STARTS) + 1 + (effort.evaluations if prune.evaluations is None else prune.evaluations)
        made = effort.auto if prune.method == "auto" else dict.fromkeys((prune.method, "uniform"))
        work, plans = self.load(), len(made)
        if "search" in made:
            windows = min(SEARCH_WINDOWS, max(1, REFERENCE // (self.window * self.vocabulary)))
            windows = min(windows, GLANCE) if effort.glance else windows
            # Layers before the first change are not run again, and bad plans see two windows.
            run = SHARED * (tried * GLANCED + max(1, len(effort.probes)) * SUBLAYERS * self.layers)
            compared = Work(bytes=6 * 4.0 * windows * self.window * self.vocabulary + 4.0 * self.projections)
            work += (self.read(windows, head=True) + compared) * run
            plans += effort.found - 1
        if plans > 1:
            work += self.judged(plans, LOOK, LOOK)
        if plans > effort.finalists + 1:  # else one is clearly best, as a rule
            work += self.judged(effort.finalists + 1, self.repaired, HELDOUT_WINDOWS)
        learnt = (prune.evaluations or effort.evaluations or LEARNT) * (prune.method in LEARNERS)
        if prune.method == "compresso":
            work += (self.read(4 if self.recipe.score.checkpointing else 3) + self.read(1, head=True)) * learnt
        else:
            work += self.forward(4) * learnt
        if prune.rounds > 1:
            work += (self.score() + self.bank() + self.judged(1, self.repaired, 0)) * prune.rounds
        return work
