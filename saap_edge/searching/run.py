"""The loop of a search: a point from the study, a trial, its result back, until as many are done as were asked for."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from saap_edge.cache import Busy, StageResult, library_versions, run_stage
from saap_edge.chain.ahead import announce
from saap_edge.chain.context import Context
from saap_edge.chain.run import Before, Step
from saap_edge.chain.stages.heldout import heldout
from saap_edge.errors import ParityError, SaapError
from saap_edge.files import read_json
from saap_edge.progress import Progress
from saap_edge.searching.axes import FORMAT
from saap_edge.searching.space import Point, Space
from saap_edge.searching.study import SharedStudy, Tried

__all__ = ["Left", "heldout_nll", "made_for", "only_made", "opened_or_left", "run_search", "told_once", "told_study"]

PATIENCE = 2.0  # seconds between two looks at a stage that another process makes

Result = TypeVar("Result")


class Left(SaapError):
    """A point is not tried; the message says why."""


def run_search(
    study: SharedStudy, space: Space, trials: int, attempt: Callable[[Point], Tried], listener: Progress
) -> None:
    """Try points until `trials` of the study are done, by this process or others, or none is left.

    `attempt` makes a point, or raises Left. An artifact that answers differently from torch is left, too. Whatever else
    it raises ends the search, and the point is tried again by the next one.
    """
    with listener.bar("search: trials", trials) as advance:
        counted = 0
        while (begun := study.begin(trials)) is not None:
            title = space.title(begun.point)
            try:
                listener.say(f"trial {len(study.tried) + 1} of {trials}: {title}")
                tried = _alone(partial(attempt, begun.point))
            except (Left, ParityError) as reason:
                listener.say(f"  left: {reason}")
                study.leave(begun, str(reason))
            except BaseException:
                study.give_back(begun)
                raise
            else:
                study.complete(begun, tried)
            done = len(study.tried)
            advance(done - counted)
            counted = done


def only_made(done: Callable[[StageResult], None]) -> Callable[[StageResult], None]:
    """`done` for stages that were made: of a search's many, most were there already."""
    return lambda result: None if result.cached else done(result)


def told_once(listener: Progress) -> Before:
    """What `run_stages` calls before it begins: the first model says what it takes, and the others are like it. Raises
    SaapError where the memory does not suffice, for any of them."""
    told = False

    def before(context: Context, steps: list[Step]) -> None:
        nonlocal told
        lines = announce(context, steps)
        if lines and not told:
            listener.ahead(lines)
            told = True

    return before


def _alone(attempt: Callable[[], Result]) -> Result:
    """What an attempt gives, once no other process makes a stage that it needs."""
    while True:
        try:
            return attempt()
        except Busy:
            time.sleep(PATIENCE)


def heldout_nll(
    context: Context, artifact: str, folder: Path, out: Path, done: Callable[[StageResult], None]
) -> float:  # fmt: skip
    """Nats a token of held-out text in the artifact's own runtime. It is a stage, which is made once."""
    stage = heldout(artifact).stage(context)
    record = context.recipe.model_dump(mode="json")
    result = run_stage(stage, {"artifact": folder}, context.outside(stage.reads), out / "stages", record)
    done(result)
    return float(read_json(result.folder / "heldout.json")["nll"])


def made_for(context: Context, space: Space, objectives: Mapping[str, str], measured: bool) -> dict[str, Any]:
    """What all processes of a study have to agree in, by its name for people; as JSON.

    Args:
        context: of the base recipe. Models and texts count by their contents, wherever they lie.
        objectives: "minimize" or "maximize" by name.
        measured: the search rests on timings, so that the machine counts.
    """
    recipe: dict[str, Any] = context.recipe.model_dump(mode="json")
    for axis in space.axes:
        section, _, field = axis.field.rpartition(".")
        _at(recipe, section).pop(field)
    recipe["export"].pop("formats", None)
    for name in ("model", "target", "data", "budget"):
        recipe.pop(name)
    machine = {name: context.machine[name] for name in ("cpu", "cores")}
    found = {
        "model": context.outside(("model", "teacher")), "target": context.target.identity,
        "text": context.outside(tuple(context.recipe.data.files)),
        "axis or value": [[axis.field, list(axis.values)] for axis in space.axes],
        "format": None if space.over(FORMAT) else space.base.export.formats[0],
        "objective": dict(objectives), "budget": context.recipe.budget.model_dump(mode="json"), "recipe": recipe,
        "machine": machine if measured else None, "version of saap-edge or a library": library_versions(),
    }  # fmt: skip
    told: dict[str, Any] = json.loads(json.dumps(found, default=str))
    return told


def _at(document: dict[str, Any], place: str) -> dict[str, Any]:
    for name in place.split("."):
        document = document[name]
    return document


def told_study(study: SharedStudy, space: Space, trials: int, seed: int) -> dict[str, Any]:
    """A study in a document: what was searched, and what became of it."""
    return {
        "axes": {axis.field: list(axis.values) for axis in space.axes}, "seed": seed, "asked": trials,
        "tried": study.rows, "left": study.left, "running": study.running, "points": len(space.points),
    }  # fmt: skip


def opened_or_left(open_it: Callable[[], Context]) -> Context:
    """The context of a point; a combination that cannot be made at all is left, with the reason."""
    try:
        return open_it()
    except SaapError as error:
        raise Left(str(error)) from None
