"""Choosing a plan: candidates are repaired and judged on held-out text, and the best is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from saap_edge.errors import SaapError
from saap_edge.model.arithmetic import Precision
from saap_edge.pruning.assembly import Assembly
from saap_edge.pruning.bank import Bank
from saap_edge.pruning.compresso import compresso_values
from saap_edge.pruning.iterate import iterative_values
from saap_edge.pruning.kept import kept_structures, method_widths, ranked_widths, unequal
from saap_edge.pruning.orders import ORDERS, Values, order_of, structure_values
from saap_edge.pruning.plan import Candidate, Plan, make_plan
from saap_edge.pruning.policy import policy_values
from saap_edge.pruning.repair import MIX, Variant, judge_variants
from saap_edge.pruning.score import KINDS, Scores
from saap_edge.pruning.search import evolve, measured_values, on_bank, probe_count
from saap_edge.pruning.settings import CLEAR, EFFORTS, LEARNERS, LEARNT, LOOK, STARTS, Effort, RankingSettings
from saap_edge.pruning.space import Space, Widths

__all__ = ["AUTO", "METHODS", "STARTS", "Made", "Planner", "load_values", "save_values"]

SEARCH = "search"
METHODS = (*ORDERS, SEARCH, *LEARNERS)  # all but orders run the model to learn widths or an order
PAPER = RankingSettings()
THOROUGH = EFFORTS["thorough"]
AUTO = THOROUGH.auto

Made = tuple[Widths, Values]  # widths, and the values that structures leave by


@dataclass(frozen=True)
class Planner:
    """Makes plans for any ratio from one set of scores and one bank.

    Attributes:
        model: the dense model, put back as it was after every call.
        calibration, search, heldout: token ids [n, window]: for repair, for the search, and for the choice.
        effort: what a plan may cost. Its evaluations are the steps of LEARNERS too; where 0, these take LEARNT.
        mix, bias: of the repair that plans are judged after; mix None judges them as cut.
        rounds: of an order; each scores the model again as it then is, by `rescore`.
        precision: of passes over text (model/arithmetic.py).
        checkpointing: recompute activations where a method takes gradients.
    """

    model: Any
    scores: Scores
    bank: Bank
    space: Space
    calibration: torch.Tensor
    search: torch.Tensor
    heldout: torch.Tensor
    ranking: RankingSettings = PAPER
    effort: Effort = THOROUGH
    seed: int = 0
    mix: float | None = MIX
    bias: bool = False
    rounds: int = 1
    rescore: Callable[[], tuple[Scores, Bank]] | None = None
    precision: Precision = "float32"
    checkpointing: bool = False

    def work(self, method: str) -> float:
        """How many steps `plan` takes. One is the time to try one plan of the search; a judgement takes several."""
        wanted = self._wanted(method)
        count = len(wanted) + (self.effort.found - 1) * (SEARCH in wanted)
        search = (
            len(STARTS) + 1 + self.effort.evaluations + probe_count(self.space, self.effort.probes or (0.5,))
            if SEARCH in wanted
            else 0
        )
        learnt = (self.effort.evaluations or LEARNT) * bool({*LEARNERS} & {*wanted})
        look = self._judgement(count, LOOK) if self._looks(count) else 0
        return search + learnt + look + self._judgement(min(count, self._most), None)

    @property
    def _most(self) -> int:
        """Plans that are judged on all text: the finalists and the uniform plan."""
        return self.effort.finalists + 1

    def _looks(self, count: int) -> bool:
        """Whether so many plans are looked at on LOOK windows before any is judged on all text."""
        return count > self._most or (count > 1 and len(self.heldout) > LOOK)

    def _judgement(self, count: int, windows: int | None) -> float:
        """Steps that judging so many plans counts for: each, and the dense model, run both texts once."""
        texts = self.heldout[:windows], () if self.mix is None else self.calibration[:windows]
        return (count + 1) * sum(map(len, texts)) / len(self.search)

    def plan(
        self, method: str, ratio: float, progress: Callable[[float], None] = lambda steps: None
    ) -> tuple[Plan, Values]:
        """The plan of a method (METHODS), or with `auto` the best of `auto`, and the values its structures leave by.

        A method asked for by name is kept even if the uniform plan is better; the plan's candidates show both.
        `progress` is called with the steps done, as `work` counts them. Raises SaapError when the ratio cannot be
        reached.
        """
        made = {name: self.made(name, ratio, progress) for name in self._wanted(method)}
        return self.choose(made, method, ratio, progress)

    def choose(
        self,
        made: Mapping[str, Sequence[Made]],
        method: str,
        ratio: float,
        progress: Callable[[float], None] = lambda steps: None,
    ) -> tuple[Plan, Values]:
        """Judge the plans that `made` gave, by method, and keep one as `plan` does.

        All are looked at on LOOK windows first. Those that are nearly as good as the best are judged on all text; where
        none is, nothing more is judged.
        """
        entries = [_Entry(name, *one) for name, several in made.items() for one in several]
        final = list(range(len(entries)))
        found: dict[int, tuple[float, int]] = {}  # perplexity, and the held-out windows that it is of
        if self._looks(len(entries)):
            found = {i: (value, LOOK) for i, value in enumerate(self.judge(entries, LOOK, progress))}
            final = self._finalists(entries, found, method)
        foreseen = self._judgement(min(len(entries), self._most), None)
        if len(final) > 1 or not found:
            judged = self.judge([entries[i] for i in final], None, progress)
            found |= {i: (value, len(self.heldout)) for i, value in zip(final, judged, strict=True)}
            foreseen -= self._judgement(len(final), None)
        progress(foreseen)
        best = min((i for i in final if method in ("auto", entries[i].method)), key=lambda i: found[i])
        candidates = []
        for name in made:
            several = [i for i, entry in enumerate(entries) if entry.method == name]
            ahead = [i for i in several if i in final] or several
            shown = best if best in several else min(ahead, key=lambda i: found[i])
            plan, (value, count) = self._plan(entries[shown], ratio), found[shown]
            candidates.append(
                Candidate(
                    method=name, achieved_ratio=plan.achieved_ratio, uniform=plan.uniform, chosen=shown == best,
                    heldout_perplexity=value, heldout_windows=count,
                )
            )  # fmt: skip
        return self._plan(entries[best], ratio).model_copy(update={"candidates": candidates}), entries[best].values

    def _finalists(self, entries: list[_Entry], found: Mapping[int, tuple[float, int]], method: str) -> list[int]:
        """Those to judge on all text: of the method that was asked for the best few, and the uniform plan.

        A plan that is clearly worse than the best of these is left out.
        """
        by = sorted(range(len(entries)), key=lambda i: found[i])
        wanted = [i for i in by if method in ("auto", entries[i].method)]
        worst = CLEAR * found[wanted[0]][0]
        rivals = [i for i in by if entries[i].method == "uniform"]
        return sorted({wanted[0], *(i for i in (*wanted[: self.effort.finalists], *rivals) if found[i][0] <= worst)})

    def _plan(self, entry: _Entry, ratio: float) -> Plan:
        order = "kfac" if entry.method in (SEARCH, "uniform") else entry.method
        return make_plan(entry.method, order, ratio, self.space, entry.widths)

    def _wanted(self, method: str) -> tuple[str, ...]:
        if self.space.uniform_only:
            if method != "auto" and (method in (SEARCH, *LEARNERS) or not order_of(method).uniform):
                raise unequal(method, self.space)
            return ("uniform",) if method == "auto" else tuple(dict.fromkeys((method, "uniform")))
        return self.effort.auto if method == "auto" else tuple(dict.fromkeys((method, "uniform")))

    def values(self, order: str) -> Values:
        """Values of an order (ORDERS). Raises SaapError for an unknown one."""
        return structure_values(order, self.scores, self.space, self.bank, self.ranking, self.seed)

    def made(self, method: str, ratio: float, progress: Callable[[float], None] = lambda steps: None) -> list[Made]:
        """Plans of one method: of a search the best few. `progress`: called with steps done."""
        if method == SEARCH:
            values = self.values("kfac")
            return [(widths, values) for widths in self._search(values, ratio, lambda: progress(1))]
        if method in LEARNERS:
            learnt = self._learnt(method, ratio, lambda: progress(1))
            return [(ranked_widths(learnt, self.space, ratio), learnt)]
        rounds = 1 if order_of(method).uniform else self.rounds
        values = self.values(method) if rounds == 1 else self._rounds(method, ratio)
        return [(method_widths(method, values, self.space, ratio), values)]

    def widths(self, method: str, ratio: float) -> Made:
        """The best plan of one method."""
        made = self.made(method, ratio)
        if len(made) == 1:
            return made[0]
        plan, values = self.choose({method: made}, method, ratio)
        return plan.widths, values

    def _learnt(self, method: str, ratio: float, progress: Callable[[], None]) -> Values:
        """The values that one of LEARNERS learns for this ratio."""
        steps = self.effort.evaluations or LEARNT
        if method == "compresso":
            return compresso_values(
                self.model, self.space, self.calibration, ratio, steps, self.seed, progress, self.precision,
                self.checkpointing,
            )  # fmt: skip
        start = self.values("wanda-sp")
        return policy_values(self.model, self.space, start, self.calibration, ratio, steps, self.seed, progress)

    def _rounds(self, method: str, ratio: float) -> Values:
        assert self.rescore is not None
        rescore = self.rescore

        def value() -> Values:
            scores, bank = rescore()
            return structure_values(method, scores, self.space, bank, self.ranking, self.seed)

        mix = MIX if self.mix is None else self.mix
        return iterative_values(self.model, self.space, value, self.calibration, ratio, self.rounds, mix)

    def _search(self, values: Values, ratio: float, progress: Callable[[], None]) -> list[Widths]:
        """The best plan of the search, the ranking corrected by measurement, and the next best; `found` at most."""
        starts, shares = [self.widths(name, ratio)[0] for name in STARTS], self.effort.probes or (1 - ratio,)
        with Assembly(self.model, self.bank, self.space, self.search, self.precision) as assembly:
            measure = assembly.glance if self.effort.glance else assembly.divergence
            measured = measured_values(measure, self.space, values, progress, shares)
            corrected = ranked_widths(measured, self.space, ratio)
            tried = len(starts) + 1 + self.effort.evaluations
            members = evolve(assembly, [corrected, *starts], ratio, tried, self.seed, progress)
        banked = on_bank(self.space, corrected, ratio)  # the bank has not all widths
        found = [corrected if member.widths == banked else member.widths for member in members]
        ordered = [found[0], corrected, *found]
        return [widths for place, widths in enumerate(ordered) if widths not in ordered[:place]][: self.effort.found]

    def judge(
        self, plans: Sequence[_Entry], windows: int | None, progress: Callable[[float], None] = lambda steps: None
    ) -> list[float]:
        """Held-out perplexity of the model cut to each plan and repaired, on so many windows of either text."""
        variants = [Variant(kept_structures(plan.values, plan.widths), self.mix, self.bias) for plan in plans]
        layer = self._judgement(len(plans), windows) / len(self.space.shapes)
        calibration = self.calibration[:0] if self.mix is None else self.calibration[:windows]
        _, *found = judge_variants(
            self.model, variants, calibration, self.heldout[:windows], progress=lambda: progress(layer),
            precision=self.precision,
        )  # fmt: skip
        return [one.value for one in found]


@dataclass(frozen=True)
class _Entry:
    """A plan that competes."""

    method: str
    widths: Widths
    values: Values


def save_values(values: Values, folder: Path) -> None:
    """Write order.safetensors: for every layer and kind, the value of each structure (the lowest leaves first)."""
    arrays = {f"layers.{i}.{kind}": layer[kind].astype(np.float64) for i, layer in enumerate(values) for kind in KINDS}
    save_file(arrays, folder / "order.safetensors")


def load_values(folder: Path) -> Values:
    """Read what `save_values` wrote. Raises SaapError when it is missing or damaged."""
    try:
        arrays = load_file(folder / "order.safetensors")
        return [{kind: arrays[f"layers.{i}.{kind}"] for kind in KINDS} for i in range(len(arrays) // len(KINDS))]
    except (OSError, KeyError, SafetensorError) as error:
        raise SaapError(
            f"'{folder}' holds no readable order of removal ({error}): run `saap-edge plan` first"
        ) from None
