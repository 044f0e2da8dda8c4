"""Choosing a plan: candidates are repaired and judged on held-out text, and the best is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from saap_edge.errors import SaapError
from saap_edge.model.perplexity import perplexity
from saap_edge.pruning.bank import Bank
from saap_edge.pruning.iterate import iterative_values
from saap_edge.pruning.kept import kept_structures, method_widths, ranked_widths
from saap_edge.pruning.orders import ORDERS, Values, order_of, structure_values
from saap_edge.pruning.plan import Candidate, Plan, make_plan
from saap_edge.pruning.policy import policy_values
from saap_edge.pruning.repair import MIX, repair, restored
from saap_edge.pruning.score import KINDS, Scores
from saap_edge.pruning.search import Assembly, evolve, measured_values, probe_count
from saap_edge.pruning.settings import RankingSettings
from saap_edge.pruning.space import Space, Widths
from saap_edge.pruning.surgery import cut

__all__ = ["AUTO", "METHODS", "Planner", "load_values", "save_values"]

SEARCH, POLICY = "search", "policy-gradient"  # these run the model to learn widths or an order
METHODS = (*ORDERS, SEARCH, POLICY)
PAPER = RankingSettings()
STARTS = ("kfac", "fused", "llm-pruner-element", "saap", "uniform")  # methods whose widths the search starts from
AUTO = (SEARCH, *STARTS)  # methods whose plans `auto` builds and judges
FINALISTS = 6  # plans of a search that `repair` mends: the bank's repair of single sublayers ranks them only roughly


@dataclass(frozen=True)
class Planner:
    """Makes plans for any ratio from one set of scores and one bank.

    Attributes:
        model: the dense transformers model. Every call leaves it as it was.
        calibration, search, heldout: token ids [n, window] for repair, for the search, and for the choice of a plan.
        ranking: settings of the methods saap and fused.
        evaluations: plans that the search tries, or steps of the policy gradient.
        mix: the repair's (see `repair`), before a plan is judged. None judges plans without repair.
        bias: the repair adds biases as well.
        rounds: of a method that ranks structures: the model is scored again after each.
        rescore: returns fresh scores and a fresh bank of `model` as it then is; needed for more than one round.
    """

    model: Any
    scores: Scores
    bank: Bank
    space: Space
    calibration: torch.Tensor
    search: torch.Tensor
    heldout: torch.Tensor
    ranking: RankingSettings = PAPER
    evaluations: int = 200
    seed: int = 0
    mix: float | None = MIX
    bias: bool = False
    rounds: int = 1
    rescore: Callable[[], tuple[Scores, Bank]] | None = None

    def work(self, method: str) -> float:
        """How many steps `plan` takes. One is the time to try one plan of the search; a judgement takes several."""
        wanted = self._wanted(method)
        search = self.evaluations + probe_count(self.space) if SEARCH in wanted else 0
        judged = len(wanted) + FINALISTS * (SEARCH in wanted)
        judgement = self._repair + len(self.heldout) * self._window
        return judged * judgement + search + self.evaluations * (POLICY in wanted)

    @property
    def _window(self) -> float:
        """Steps of `work` for one forward pass over a window."""
        return 1 / len(self.search)

    @property
    def _repair(self) -> float:
        """Steps of `work` for one repair, which runs the calibration text three times."""
        return 0.0 if self.mix is None else 3 * len(self.calibration) * self._window

    def plan(
        self, method: str, ratio: float, progress: Callable[[float], None] = lambda steps: None
    ) -> tuple[Plan, Values]:
        """The plan of a method (METHODS), or with `auto` the best of AUTO, and the values by which structures leave.

        A method asked for by name is kept even if the uniform plan is better; the plan's candidates show both.
        `progress` is called with the steps done, as `work` counts them. Raises SaapError when the ratio cannot be
        reached.
        """
        return self.choose(
            {name: self.widths(name, ratio, progress) for name in self._wanted(method)}, method, ratio, progress
        )

    def choose(
        self,
        made: dict[str, tuple[Widths, Values]],
        method: str,
        ratio: float,
        progress: Callable[[float], None] = lambda steps: None,
    ) -> tuple[Plan, Values]:
        """Judge the plans in `made` (method -> what `widths` returned) and keep one, as `plan` does."""
        judged = [self.judge(widths, values, progress) for widths, values in made.values()]
        best = int(np.argmin(judged)) if method == "auto" else list(made).index(method)
        plans = [
            make_plan(name, "kfac" if name in (SEARCH, "uniform") else name, ratio, self.space, widths)
            for name, (widths, _) in made.items()
        ]
        candidates = [
            Candidate(
                method=plan.method, achieved_ratio=plan.achieved_ratio, heldout_perplexity=value, uniform=plan.uniform,
                chosen=index == best,
            )
            for index, (plan, value) in enumerate(zip(plans, judged, strict=True))
        ]  # fmt: skip
        return plans[best].model_copy(update={"candidates": candidates}), made[plans[best].method][1]

    def _wanted(self, method: str) -> tuple[str, ...]:
        if self.space.uniform_only:
            if method != "auto" and (method in (SEARCH, POLICY) or not order_of(method).uniform):
                method_widths(method, [], self.space, 0.5)
            return ("uniform",) if method == "auto" else tuple(dict.fromkeys((method, "uniform")))
        return AUTO if method == "auto" else tuple(dict.fromkeys((method, "uniform")))

    def values(self, order: str) -> Values:
        """Values of an order (ORDERS). Raises SaapError for an unknown one."""
        return structure_values(order, self.scores, self.space, self.bank, self.ranking, self.seed)

    def widths(
        self, method: str, ratio: float, progress: Callable[[float], None] = lambda steps: None
    ) -> tuple[Widths, Values]:
        """Widths of one method, and the values by which its structures leave. Raises SaapError as `plan`."""
        if method == SEARCH:
            values = self.values("kfac")
            finalists = self._search(values, ratio, lambda: progress(1))
            judged = [self.judge(widths, values, progress) for widths in finalists]
            return finalists[int(np.argmin(judged))], values
        if method == POLICY:
            start = self.values("wanda-sp")
            learnt = policy_values(
                self.model, self.space, start, self.calibration, ratio, self.evaluations, self.seed,
                lambda: progress(1),
            )  # fmt: skip
            return ranked_widths(learnt, self.space, ratio), learnt
        rounds = 1 if order_of(method).uniform else self.rounds
        values = self.values(method) if rounds == 1 else self._rounds(method, ratio)
        return method_widths(method, values, self.space, ratio), values

    def _rounds(self, method: str, ratio: float) -> Values:
        assert self.rescore is not None
        rescore = self.rescore

        def value() -> Values:
            scores, bank = rescore()
            return structure_values(method, scores, self.space, bank, self.ranking, self.seed)

        mix = MIX if self.mix is None else self.mix
        return iterative_values(self.model, self.space, value, self.calibration, ratio, self.rounds, mix)

    def _search(self, values: Values, ratio: float, progress: Callable[[], None]) -> list[Widths]:
        """Widths of the ranking as `measured_values` corrects it, then of the best plans found; FINALISTS at most."""
        starts = [self.widths(name, ratio)[0] for name in STARTS]
        with Assembly(self.model, self.bank, self.space, self.search) as assembly:
            corrected = ranked_widths(measured_values(assembly, values, progress), self.space, ratio)
            found = evolve(assembly, [corrected, *starts], ratio, self.evaluations, self.seed, progress)
        return [corrected, *(member.widths for member in found if member.widths != corrected)][:FINALISTS]

    def judge(self, widths: Widths, values: Values, progress: Callable[[float], None] = lambda steps: None) -> float:
        """Held-out perplexity of the model cut to these widths and repaired."""
        kept = kept_structures(values, widths)

        def passed(windows: int) -> None:
            progress(windows * self._window)

        if self.mix is None:
            return perplexity(cut(self.model, kept), self.heldout, passed).value
        with restored(self.model):
            layer = self._repair / len(kept)
            repair(self.model, kept, self.calibration, self.mix, self.bias, lambda: progress(layer))
            return perplexity(self.model, self.heldout, passed).value


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
