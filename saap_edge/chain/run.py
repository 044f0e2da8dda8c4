"""Running stages in order: what `saap-edge compile` and the commands of single stages share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saap_edge.cache import Stage, StageResult, clean_leftovers, link, run_stage, stage_folder
from saap_edge.chain.chains import COMPILE, WRITING
from saap_edge.chain.context import Context
from saap_edge.chain.rule import Rule
from saap_edge.errors import EXIT_OK, SaapError
from saap_edge.files import read_json
from saap_edge.formats import KINDS

__all__ = ["MEASURED", "PUBLIC", "Before", "Outcome", "Step", "publish", "run_stages"]

MEASURED = "bench"  # measuring again gives other figures, so that stages made from the older ones are made again
ON_THE_WAY = ("bank",)  # made when it is missing, so that people need not know of it

# What people look for, under names that stay the same from run to run, set when a chain is complete.
_LINKS = {
    "plan": {"plan.json": "plan.json"},
    "recover": {"model": "model"},
    "export": {name: name for name, kind in KINDS.items() if kind.usual},
    "report": {"report.json": "report.json", "report.html": "report.html"},
}
PUBLIC = tuple(public for names in _LINKS.values() for public in names)


@dataclass
class Outcome:
    """What a run did: the result of every stage, the links that were set, and the gate's exit code."""

    results: list[StageResult] = field(default_factory=list)
    links: dict[str, Path] = field(default_factory=dict)
    exit_code: int = EXIT_OK

    def as_dict(self) -> dict[str, Any]:
        """The outcome as a JSON document."""
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
    """A stage of a run. `cached`: there is nothing to do; `again`: its folder is there, and out of date."""

    stage: Stage
    cached: bool
    again: bool


Before = Callable[[Context, list[Step]], None]  # called with what a run is about to do; may raise SaapError


def run_stages(
    context: Context, chain: tuple[Rule, ...], names: tuple[str, ...], *, out: Path,
    folders: Mapping[str, Path] | None = None, after: str | None = None,
    done: Callable[[StageResult], None] = lambda result: None, before: Before = lambda context, steps: None,
) -> Outcome:  # fmt: skip
    """Run `names` in order, first making missing intermediate stages (only the bank).

    Args:
        chain: the rules that stages are made by.
        folders: stage folders that are already there, by name.
        out: the run's folder; stage folders live in out/stages.
        after: the stage that `folders` ends with, to say what is missing; None at the start of a chain.
        done: called after every stage.
        before: called with what is about to be done; may raise SaapError.

    Raises SaapError when a needed stage is missing, and whatever the stages refuse.
    """
    root = out / "stages"
    made = _make(out)
    outcome, folders = Outcome(), dict(folders or {})
    try:
        clean_leftovers(root)
        with context.bar("hashing the model and the texts", None):
            stages = {rule.name: rule.stage(context) for rule in _needed(context, chain, names, folders, after)}
            steps = _steps(context, stages, folders, root)
        before(context, steps)
        record = context.recipe.model_dump(mode="json")
        for step in steps:
            name = step.stage.name
            with context.bar(name, None):  # for what the stage has no bar of its own for: loading, saving
                result = run_stage(step.stage, folders, context.outside(step.stage.reads), root, record, step.again)
            folders[name] = result.folder
            outcome.results.append(result)
            done(result)
            if name == "gate":
                outcome.exit_code = int(read_json(result.folder / "gate.json")["exit_code"])
        if names[-1] == "report":
            outcome.links = publish(folders, out)
    finally:
        _unmake(made)
    return outcome


def _steps(context: Context, stages: dict[str, Stage], folders: dict[str, Path], root: Path) -> list[Step]:
    """The steps of a run. They are known beforehand, because a stage's folder is named by its inputs."""
    folders, remade, steps = dict(folders), set[str](), []
    for name, stage in stages.items():
        folders[name] = stage_folder(stage, folders, context.outside(stage.reads), root)
        again = bool(remade & set(stage.inputs))
        cached = folders[name].is_dir() and not again
        if again or (name == MEASURED and not cached):
            remade.add(name)
        steps.append(Step(stage, cached, again))
    return steps


def publish(folders: Mapping[str, Path], out: Path) -> dict[str, Path]:
    """Point the public names at the folders of one finished chain, so that they never mix two runs. A kind of artifacts
    that this chain has not gets no name, and loses the one of a run before."""
    links = {}
    for stage, names in _LINKS.items():
        for public, inside in names.items():
            target, name = folders[stage] / inside, out / public
            if target.exists():
                link(target, name)
                links[public] = name
            elif name.is_symlink():
                name.unlink()
    return links


def _needed(
    context: Context, chain: tuple[Rule, ...], names: tuple[str, ...], folders: dict[str, Path], after: str | None
) -> list[Rule]:  # fmt: skip
    """The rules of `names`. Before each come rules that it needs, if they are missing and can be made on the way."""
    rules = {rule.name: rule for rule in (*WRITING, *COMPILE, *chain)}  # to say of any stage what it needs
    order = list(rules)
    have, needed = set(folders), list[Rule]()

    def add(name: str) -> None:
        for need in sorted(set(rules[name].needs(context)) - have, key=order.index):
            if not set(rules[need].inputs) <= (have if need in ON_THE_WAY else set()):
                given = f"a {after} folder" if after else "no folder"
                raise SaapError(f"{name} works on the folder of {need} or a later stage, and {given} was given")
            add(need)
        needed.append(rules[name])
        have.add(name)

    for name in names:
        add(name)
    return list(dict.fromkeys(needed))


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
    """Remove the folders that this run created and left empty: a refused run leaves nothing behind."""
    for path in made:
        try:
            path.rmdir()
        except OSError:
            return
