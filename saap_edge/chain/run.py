"""Running stages in order: what `saap-edge compile` and the commands of single stages share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saap_edge.cache import Stage, StageResult, clean_leftovers, link, run_stage, stage_folder
from saap_edge.chain.job import ORDER, Job
from saap_edge.errors import EXIT_OK, SaapError
from saap_edge.files import read_json

__all__ = ["Outcome", "Step", "run_stages"]

MEASURED = "bench"  # another run gives other figures: what was made from older ones is made again
ON_THE_WAY = ("bank",)  # a stage people need not know of: made when missing, from what it needs

# What people look for, under names that stay the same from run to run, set when a chain is complete.
_LINKS = {
    "plan": {"plan.json": "plan.json"},
    "recover": {"model": "model"},
    "export": {"gguf": "gguf", "onnx": "onnx"},
    "report": {"report.json": "report.json", "report.html": "report.html"},
}


@dataclass
class Outcome:
    """What a run did: every stage's result, the links it set, and the gate's exit code."""

    results: list[StageResult] = field(default_factory=list)
    links: dict[str, Path] = field(default_factory=dict)
    exit_code: int = EXIT_OK

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, for --json."""
        stages = [
            {"stage": r.name, "folder": str(r.folder), "cached": r.cached, "seconds": round(r.seconds, 2)}
            for r in self.results
        ]
        return {
            "exit_code": self.exit_code,
            "stages": stages,
            "files": {name: str(path) for name, path in self.links.items()},
        }


@dataclass(frozen=True)
class Step:
    """A stage that a run comes to: `cached` where there is nothing to do, `again` where its folder is out of date."""

    stage: Stage
    cached: bool
    again: bool


def run_stages(
    job: Job, names: tuple[str, ...], folders: dict[str, Path], out: Path, after: str | None,
    done: Callable[[StageResult], None], before: Callable[[Job, list[Step]], None] = lambda job, steps: None,
) -> Outcome:  # fmt: skip
    """Run `names` in order, and before them whatever they need that `folders` lacks and that needs nothing else (the
    bank needs scores, and is made on the way too).

    Args:
        folders: stage folders that are already there, by name.
        out: the run's folder; stage folders live in out/stages.
        after: the stage that `folders` ends with, to say what is missing; None at the start of a chain.
        done: called after every stage.
        before: called with what is about to be done; may raise SaapError.

    Raises SaapError when a needed stage is missing, and whatever the stages refuse.
    """
    root = out / "stages"
    made = _make(out)
    outcome, folders = Outcome(), dict(folders)
    try:
        clean_leftovers(root)
        with job.bar("hashing the model and the texts", None):
            steps = _steps(job, _with_needs(job, names, folders, after), folders, root)
        before(job, steps)
        record = job.recipe.model_dump(mode="json")
        for step in steps:
            name = step.stage.name
            with job.bar(name, None):  # for what the stage has no bar of its own for: loading, saving
                result = run_stage(step.stage, folders, job.outside(step.stage.reads), root, record, step.again)
            folders[name] = result.folder
            outcome.results.append(result)
            done(result)
            if name == "gate":
                outcome.exit_code = int(read_json(result.folder / "gate.json")["exit_code"])
        if names[-1] == "report":
            outcome.links = _publish(folders, out)
    finally:
        _unmake(made)
    return outcome


def _steps(job: Job, names: list[str], folders: dict[str, Path], root: Path) -> list[Step]:
    """What the run comes to, known beforehand: the folder of a stage is named by its inputs, not by its result."""
    folders, remade, steps = dict(folders), set[str](), []
    for name in names:
        stage = job.stage(name)
        folders[name] = stage_folder(stage, folders, job.outside(stage.reads), root)
        again = bool(remade & set(stage.inputs))
        cached = folders[name].is_dir() and not again
        if again or (name == MEASURED and not cached):
            remade.add(name)
        steps.append(Step(stage, cached, again))
    return steps


def _publish(folders: dict[str, Path], out: Path) -> dict[str, Path]:
    """Point the public names at one finished chain, all of it: never a plan of one run beside files of another."""
    links = {}
    for stage, names in _LINKS.items():
        for public, inside in names.items():
            link(folders[stage] / inside, out / public)
            links[public] = out / public
    return links


def _with_needs(job: Job, names: tuple[str, ...], folders: dict[str, Path], after: str | None) -> list[str]:
    have, order = set(folders), []
    for name in names:
        for need in sorted(set(job.stage(name).inputs) - have, key=ORDER.index):
            if not set(job.stage(need).inputs) <= (have if need in ON_THE_WAY else set()):
                given = f"a {after} folder" if after else "no folder"
                raise SaapError(f"{name} works on the folder of {need} or a later stage, and {given} was given")
            order.append(need)
            have.add(need)
        order.append(name)
        have.add(name)
    return list(dict.fromkeys(order))


def _make(out: Path) -> list[Path]:
    """Create out/stages; returns the folders that were not there before, deepest first."""
    wanted = [out / "stages", out, *out.absolute().parents]
    missing = [path for path in wanted if not path.exists()]
    if out.exists() and not out.is_dir():
        raise SaapError(f"--out '{out}' is a file: choose a folder")
    try:
        (out / "stages").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaapError(f"cannot create '{out}': {error.strerror}") from None
    return missing


def _unmake(made: list[Path]) -> None:
    """Remove folders this run created that stayed empty: a refused run leaves nothing behind."""
    for path in made:
        try:
            path.rmdir()
        except OSError:
            return
