"""The chain, whole or stage by stage."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saap_edge.api.recipes import recipe_of
from saap_edge.api.results import Place, Run, folder_of
from saap_edge.errors import SaapError
from saap_edge.progress import Listener, Progress, progress_of

if TYPE_CHECKING:
    from saap_edge.chain.run import Before
    from saap_edge.gating import Budget
    from saap_edge.recipe import Recipe

__all__ = [
    "bank",
    "compile",
    "export",
    "plan",
    "prune",
    "recover",
    "resume",
    "run_chain",
    "score",
    "told_ahead",
    "write_report",
]


def compile(
    model: str | Path | None = None, *, recipe: Recipe | Mapping[str, Any] | str | Path | None = None,
    target: str | Path | None = None, ratio: float | None = None, method: str | None = None, tokens: int | None = None,
    data: str | Path | None = None, plan: str | Path | None = None,
    budget: Budget | Mapping[str, Any] | str | Path | None = None, out: str | Path, progress: Listener = None,
) -> Run:  # fmt: skip
    """Run the whole chain: score, bank, plan, prune, recover, dense, export, verify, bench, gate, report.

    Args:
        recipe, model, target, ratio, method, tokens, data, budget: as `recipe_of`.
        plan: plan.json to use instead of searching for one.
        out: folder to write; what was done there before is not done again.
        progress: a `Progress`, or a function that is called with (what, done, total).

    Raises SaapError for bad input, before anything is written, and where a stage fails.

        run = se.compile("./TinyLlama", target="rpi5", ratio=0.3, out="out")
        run.files["gguf-q4_0"]
    """
    from saap_edge.chain.chains import ORDER

    settings = recipe_of(
        recipe, model=model, target=target, ratio=ratio, method=method, tokens=tokens, data=data, budget=budget
    )
    return run_chain(settings, ORDER, {}, Path(out), plan=plan, progress=progress)


def score(
    model: str | Path | None = None, *, recipe: Recipe | Mapping[str, Any] | str | Path | None = None,
    data: str | Path | None = None, out: str | Path, progress: Listener = None,
) -> Run:  # fmt: skip
    """Importance of every KV group and FFN channel, per calibration batch: the first stage.

        run = se.score("./TinyLlama", out="out")
        run = se.plan(run, ratio=0.3)

    Raises SaapError as `compile`.
    """
    settings = recipe_of(recipe, model=model, data=data)
    return run_chain(settings, ("score",), {}, Path(out), progress=progress)


def bank(place: Place, *, progress: Listener = None) -> Run:
    """Order of removal and repaired weights of every sublayer, at every width: one bank serves all budgets.

    `place`: a run, or a folder of the score stage. Raises SaapError as `resume`.
    """
    return resume(place, "bank", progress=progress)


def plan(
    place: Place, *, ratio: float | None = None, method: str | None = None, plan: str | Path | None = None,
    progress: Listener = None,
) -> Run:  # fmt: skip
    """Widths per layer from saved scores and bank: another ratio needs no scoring again.

    `plan` uses a plan.json instead of searching for one. Raises SaapError as `resume`.
    """
    return resume(place, "plan", plan=plan, ratio=ratio, method=method, progress=progress)


def prune(place: Place, *, progress: Listener = None) -> Run:
    """Cut the model to its plan and repair it: `run.model` is a Hugging Face folder. Raises SaapError as `resume`."""
    return resume(place, "prune", progress=progress)


def recover(
    place: Place, *, recipe: Recipe | Mapping[str, Any] | str | Path | None = None,
    teacher: str | Path | None = None, tokens: int | None = None, data: str | Path | None = None,
    out: str | Path | None = None, progress: Listener = None,
) -> Run:  # fmt: skip
    """Group fine-tuning in the export's blocks; never returns worse than it got.

    Args:
        place: a run or folder that ends with prune; or a model, pruned or dense, a Hugging Face folder or .gguf file,
            which stands alone.
        recipe, data, out: go with a model; a run has its own.
        teacher: the dense model to learn from; `tokens`: how much training.

    Raises SaapError as `resume`, and for options that do not go with what was given.
    """
    folder = folder_of(place)
    if (folder / "stage.json").is_file() or not (folder.is_file() or (folder / "config.json").is_file()):
        if recipe or data or out:
            raise SaapError("--recipe, --data and --out go with a model: a stage folder has its own")
        return resume(folder, "recover", tokens=tokens, teacher=teacher, progress=progress)
    if out is None:
        raise SaapError(f"'{folder}' is a model: say with --out where to write")
    settings = recipe_of(recipe, model=folder, teacher=teacher, tokens=tokens, data=data)
    return run_chain(settings, ("recover",), {}, Path(out), tune=True, progress=progress)


def export(place: Place, *, progress: Listener = None) -> Run:
    """Write GGUF and ONNX: `run.files` by format. Raises SaapError as `resume`."""
    return resume(place, "export", progress=progress)


def write_report(place: Place, *, progress: Listener = None) -> Run:
    """Write report.json and report.html: `run.report`. Raises SaapError as `resume`."""
    return resume(place, "report", progress=progress)


def resume(
    place: Place, stage: str, *, plan: str | Path | None = None, progress: Listener = None, **options: Any
) -> Run:
    """Run one stage on the folder of the stage before it, with that run's recipe and `options` of `recipe_of` on top.

    Raises SaapError where `place` is no stage's folder, or one that `stage` does not follow.
    """
    from saap_edge.cache import ancestors, read_stage

    folder = folder_of(place)
    record = read_stage(folder)
    settings, folders = recipe_of(record["recipe"], **options), ancestors(folder)
    tune = "recover" in folders and "prune" not in folders
    return run_chain(
        settings, (stage,), folders, folder.resolve().parent.parent, plan=plan, after=record["stage"], tune=tune,
        progress=progress,
    )  # fmt: skip


def run_chain(
    recipe: Recipe, names: tuple[str, ...], folders: dict[str, Path], out: Path, *, plan: str | Path | None = None,
    after: str | None = None, tune: bool = False, progress: Listener = None,
) -> Run:  # fmt: skip
    """Run the stages `names` behind those in `folders`.

    Args:
        after: the stage that `folders` ends with; None at the start of a chain.
        tune: the model is recovered as it is, nothing is pruned.
    """
    listener = progress_of(progress)
    _check_processes(recipe, names)
    with listener.bar("loading libraries", None):
        from saap_edge.chain.chains import COMPILE, TUNE
        from saap_edge.chain.context import open_context
        from saap_edge.chain.run import run_stages
    with listener.bar("checking the recipe and the model", None):
        context = open_context(recipe, None if plan is None else Path(plan), listener.bar, tune)
    for warning in context.warnings:
        listener.note(warning)
    chain = TUNE if tune else COMPILE
    outcome = run_stages(
        context, chain, names, out=out, folders=folders, after=after, done=listener.stage,
        before=told_ahead(listener),
    )  # fmt: skip
    return Run(out, tuple(outcome.results), outcome.links, outcome.exit_code, context.warnings)


def told_ahead(listener: Progress) -> Before:
    """What `run_stages` calls before it begins: the listener hears what is about to be done."""
    from saap_edge.chain.ahead import announce

    return lambda context, steps: listener.ahead(announce(context, steps))


def _check_processes(recipe: Recipe, names: tuple[str, ...]) -> None:
    """Refuse a launch of several processes that a stage cannot share. Raises SaapError in each of them."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1 and names != ("recover",):
        raise SaapError("accelerate launch is for `saap-edge recover`: run the other stages without it")
    if recipe.recover.batch % processes:  # every process sees this, so that none waits for another
        raise SaapError(f"recover.batch {recipe.recover.batch} cannot be shared out over {processes} processes")
