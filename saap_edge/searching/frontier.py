"""The front of quality against bytes, memory or speed, over several axes.

The search goes by figures that are the same each time: perplexity on held-out text, counted bytes, predictions; only
speed on this machine is measured, by turns with the anchor. What it found on the front is then measured as `frontier`
measures, beside the dense model: on test text, on which nothing was chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from saap_edge.chain.chains import COMPILE
from saap_edge.chain.context import Context, Known
from saap_edge.chain.run import run_stages
from saap_edge.documents.plan import load_plan
from saap_edge.errors import SaapError
from saap_edge.prediction.cost import ArtifactCost, artifact_cost, cached_as
from saap_edge.prediction.predict import Estimate
from saap_edge.progress import Progress
from saap_edge.recipe import Recipe
from saap_edge.searching.early import hopeless, predicted
from saap_edge.searching.opening import make_folder, open_search
from saap_edge.searching.run import (
    Left,
    heldout_nll,
    made_for,
    only_made,
    opened_or_left,
    run_search,
    told_once,
    told_study,
)
from saap_edge.searching.samplers import sampler
from saap_edge.searching.space import Point, Space
from saap_edge.searching.study import Direction, SharedStudy, Tried
from saap_edge.worth.fit import cost_at
from saap_edge.worth.frontier import (
    CHAIN,
    anchor_of,
    dense_folder,
    frontier_document,
    measured,
    open_at,
    with_formats,
)
from saap_edge.worth.frontier import Point as Artifact

__all__ = ["GAINS", "Maker", "search_frontier"]

QUALITY = "held-out nats a token"


class Gain(NamedTuple):
    """What may be gained beside quality: its objective's name, its direction, and what has to be predicted for it."""

    objective: str
    direction: Direction
    needs: Callable[[Any], Estimate | None] | None


GAINS = {
    "bytes": Gain("MiB of the file", "minimize", None),
    "memory": Gain("MiB of memory, predicted", "minimize", lambda told: told.ram_mib),
    "speed": Gain("decode speed", "maximize", lambda told: told.decode_tok_s),
}


def search_frontier(
    recipe: Recipe, over: Mapping[str, Sequence[Any]], ratios: Sequence[float], gains: Sequence[str],
    rivals: Sequence[str], out: Path, listener: Progress, *, trials: int, study: Path, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Search the front of quality against `gains` (of GAINS) over axes (`open_search`), measure what is on it, and
    return the frontier document, with `search`, which tells of the study.

    Raises SaapError for a figure that cannot be predicted for the board, a study that was made for something else, and
    for all that the stages refuse.
    """
    opened = open_search(recipe, over, ratios, listener)
    space, context = opened.space, opened.context
    wanted = [name for name in rivals if name not in context.recipe.export.formats]
    rival = open_at(with_formats(recipe, tuple(wanted)), 0, listener.bar, opened.known) if wanted else None
    _check_predictable(context, gains)
    sought = [GAINS[name] for name in gains]
    directions: dict[str, Direction] = {QUALITY: "minimize", **{gain.objective: gain.direction for gain in sought}}
    timed = context.on_target and "speed" in gains
    make_folder(out)
    shared = SharedStudy(
        study, made_for(context, space, directions, timed), list(directions.values()), space, sampler, seed
    )
    maker = Maker(space, context, opened.known, out, listener)
    run_search(shared, space, trials, lambda point: maker.attempt(point, gains), listener)
    folder = dense_folder(context, out, listener.stage)
    artifacts = [Artifact(0, 0, name, folder, context) for name in context.recipe.export.formats]
    if rival:
        folder = dense_folder(rival, out, listener.stage)
        artifacts += [Artifact(0, 0, name, folder, rival) for name in wanted]
    there = {artifact.name for artifact in artifacts}
    front = [maker.artifact(row["point"]) for row in shared.best]
    artifacts += [artifact for artifact in front if artifact.name not in there]
    documents = [measured(artifact, maker.anchor, out, listener.stage) for artifact in artifacts]
    document = frontier_document(context, maker.anchor[1], artifacts, documents)
    return document | {"search": told_study(shared, space, trials, seed) | {"gains": list(gains)}}


def _check_predictable(context: Context, gains: Sequence[str]) -> None:
    """Raise SaapError where the board's figures do not suffice for what is to be gained."""
    for name in gains:
        needs = GAINS[name].needs
        if needs is None or (name == "speed" and context.on_target):
            continue
        for artifact in context.recipe.export.formats:
            told = predicted(context, cost_at(context.spec, artifact, context.recipe.export.group, 0))
            if needs(told) is None:
                reason = next(iter(told.reasons.values()), "its figures do not suffice")
                raise SaapError(f"--gain {name} cannot be predicted for {context.target.title}: {reason}")


class Maker:
    """Makes points into artifacts. `context` is that of the dense model in all formats."""

    def __init__(self, space: Space, context: Context, known: Known, out: Path, listener: Progress) -> None:
        self._space, self._context, self._known, self._out, self._bar = space, context, known, out, listener.bar
        self._done, self._before = only_made(listener.stage), told_once(listener)

    @cached_property
    def anchor(self) -> tuple[Path, str]:
        """Folder and format of what all speeds are measured beside."""
        return dense_folder(self._context, self._out, lambda result: None), anchor_of(self._context)

    def artifact(self, point: Point) -> Artifact:
        """The artifact of a point. Raises Left where it cannot be made, or predictions say that it need not."""
        ratio, name = self._space.ratio(point), self._space.format(point)
        own = opened_or_left(lambda: open_at(self._space.recipe(point), ratio, self._bar, self._known))
        reason = hopeless(own, name, ratio)
        if reason:
            raise Left(reason)
        label = self._space.label(point)
        if not ratio:
            return Artifact(0, 0, name, dense_folder(own, self._out, self._done), own, label)
        run = run_stages(own, COMPILE, CHAIN, out=self._out, done=self._done, before=self._before)
        folders = {result.name: result.folder for result in run.results}
        return Artifact(ratio, load_plan(folders["plan"]).achieved_ratio, name, folders["export"], own, label)

    def attempt(self, point: Point, gains: Sequence[str]) -> Tried:
        """The trial of a point."""
        made = self.artifact(point)
        nll = heldout_nll(made.context, made.format, made.folder, self._out, self._done)
        cost = cached_as(artifact_cost(made.folder, made.format), made.context.recipe.bench.kv)
        figures = {name: self._gained(name, made, cost) for name in gains}
        row = {
            "point": point, "name": made.name, "ratio": made.ratio, "removed": made.removed, "format": made.format,
            "heldout_perplexity": math.exp(nll), "file_bytes": cost.file_bytes, **figures,
        }  # fmt: skip
        return Tried([nll, *figures.values()], row, {})

    def _gained(self, name: str, made: Artifact, cost: ArtifactCost) -> float:
        if name == "bytes":
            return cost.file_bytes / 2**20
        if name == "speed" and made.context.on_target:
            [comparison] = measured(made, self.anchor, self._out, self._done).comparisons
            return float(comparison.ratios.decode_tok_s.ratio)
        estimate = predicted(made.context, cost)
        found = estimate.ram_mib if name == "memory" else estimate.decode_tok_s
        assert found is not None  # checked before
        return found.value
