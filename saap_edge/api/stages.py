"""The chain, whole or stage by stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saap_edge.api.recipes import recipe_of
from saap_edge.api.results import Place, Run, folder_of
from saap_edge.errors import SaapError
from saap_edge.machine.launch import processes
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
    "write",
    "write_report",
]


def compile(
    model: str | Path | None = None, *, recipe: Recipe | Mapping[str, Any] | str | Path | None = None,
    target: str | Path | None = None, ratio: float | None = None, method: str | None = None, effort: str | None = None,
    tokens: int | None = None, data: str | Path | None = None, plan: str | Path | None = None,
    budget: Budget | Mapping[str, Any] | str | Path | None = None, out: str | Path, progress: Listener = None,
) -> Run:  # fmt: skip
    """Run the whole chain: score, bank, plan, prune, recover, dense, export, verify, bench, gate, report.

    Args:
        model: Hugging Face folder, .gguf file or hub name; the bundled model where nothing names one.
        recipe: a YAML file, a document or a `Recipe`; the options beside it replace what it says, as in `recipe_of`.
        target: the board, by name or YAML file.
        ratio: share of the dense cost to remove, in (0, 1).
        method: how the plan is made (docs/method.md).
        effort: how many plans are tried: quick, normal or thorough.
        tokens: training tokens of recovery.
        data: folder with calibration.txt, heldout.txt and test.txt; "self" or "half": the model writes calibration text
            of its own.
        plan: plan.json to use instead of searching for one.
        budget: limits of the gate.
        out: folder to write; stages that were run there before are found again.
        progress: a `Progress`, or a function that is called with (what, done, total).

    Raises SaapError for bad input, before anything is written, and where a stage fails.

    Examples:
        >>> run = se.compile("model", recipe="recipe.yaml", ratio=0.3, out="out")
        >>> run.files["gguf-q4_0"].name, run.exit_code
        ('model-q4_0.gguf', 0)
    """
    from saap_edge.chain.chains import ORDER

    settings = recipe_of(
        recipe, model=model, target=target, ratio=ratio, method=method, effort=effort, tokens=tokens, data=data,
        budget=budget,
    )  # fmt: skip
    return run_chain(settings, ORDER, {}, Path(out), plan=plan, progress=progress)


def write(
    model: str | Path | None = None, *, recipe: Recipe | Mapping[str, Any] | str | Path | None = None,
    data: str | Path | None = None, out: str | Path, progress: Listener = None,
) -> Run:  # fmt: skip
    """Let the model write calibration text, as `compile` with data="self" does before it scores.

    `recipe` says how much (`data.self_tokens`) and from which seed. `data` is "self" where neither it nor the recipe
    asks for written text. The stage's folder has the text in text.txt, and in write.json what was dropped. Arguments
    and errors as `compile`; raises SaapError too where hardly any text is fit to learn from.

    Examples:
        >>> written = se.write("model", recipe="recipe.yaml", out="out")
        >>> sorted(path.name for path in written.folder.iterdir())
        ['stage.json', 'text.txt', 'tokens.safetensors', 'write.json']
    """
    from saap_edge.recipe import SELF

    settings = recipe_of(recipe, model=model, data=data)
    settings = settings if settings.data.written else recipe_of(settings, data=SELF)
    return run_chain(settings, ("write",), {}, Path(out), tune=True, progress=progress)


def score(
    model: str | Path | None = None, *, recipe: Recipe | Mapping[str, Any] | str | Path | None = None,
    data: str | Path | None = None, out: str | Path, progress: Listener = None,
) -> Run:  # fmt: skip
    """Score every KV group, query slot and FFN channel on every calibration batch: the first stage.

    The scores are saved, so that planning at another ratio needs no model. Arguments and errors as `compile`.

    Examples:
        >>> scored = se.score("model", recipe="recipe.yaml", out="out")
        >>> [se.plan(scored, ratio=ratio, method="saap").plan.ratio for ratio in (0.2, 0.3)]
        [0.2, 0.3]
    """
    settings = recipe_of(recipe, model=model, data=data)
    return run_chain(settings, ("score",), {}, Path(out), progress=progress)


def bank(place: Place, *, progress: Listener = None) -> Run:
    """Make the bank: every sublayer's order of removal, and its repaired weights at every width.

    One bank serves all ratios. `place` is a run that ends with score, or the folder of that stage. Raises SaapError as
    `resume`.

    Examples:
        >>> banked = se.bank(se.score("model", recipe="recipe.yaml", out="out"))
        >>> banked.folder == run.folders["bank"]
        True
    """
    return resume(place, "bank", progress=progress)


def plan(
    place: Place, *, ratio: float | None = None, method: str | None = None, effort: str | None = None,
    plan: str | Path | None = None,
    progress: Listener = None,
) -> Run:  # fmt: skip
    """Plan the widths of every layer from saved scores and bank; no scoring is done again.

    Args:
        place: a run that ends with score or bank, or the folder of that stage.
        ratio: share of the dense cost to remove, in (0, 1); the recipe's where absent.
        method: how the plan is made; the recipe's where absent.
        effort: how many plans are tried; the recipe's where absent.
        plan: plan.json to use instead of searching for one.

    Raises SaapError as `resume`.

    Examples:
        >>> planned = se.plan(run.folders["bank"], ratio=0.2)
        >>> planned.plan.ratio, planned.plan.achieved_ratio >= 0.2
        (0.2, True)
    """
    return resume(place, "plan", plan=plan, ratio=ratio, method=method, effort=effort, progress=progress)


def prune(place: Place, *, progress: Listener = None) -> Run:
    """Cut the model to its plan and repair it. Raises SaapError as `resume`.

    Returns a run whose `model` is a Hugging Face folder.

    Examples:
        >>> pruned = se.prune(run.folders["plan"])
        >>> sorted(path.name for path in pruned.model.glob("*.safetensors"))
        ['model.safetensors']
    """
    return resume(place, "prune", progress=progress)


def recover(
    place: Place, *, recipe: Recipe | Mapping[str, Any] | str | Path | None = None,
    teacher: str | Path | None = None, tokens: int | None = None, shard: bool | None = None,
    data: str | Path | None = None, out: str | Path | None = None, progress: Listener = None,
) -> Run:  # fmt: skip
    """Fine-tune a model in the blocks of the files that ship (docs/recovery.md).

    Held-out text decides which weights are kept, by the loss that was trained (docs/recovery.md#what-decides).

    Args:
        place: a run that ends with prune, or the folder of that stage; or any model, dense or pruned: a Hugging Face
            folder or a .gguf file.
        recipe: with a model: a YAML file, a document or a `Recipe`. A run has its own.
        teacher: the dense model to learn from.
        tokens: training tokens.
        shard: share frozen weights out over the processes of a launch (docs/clusters.md).
        data: with a model: as of `compile`. The teacher writes, because it is what is learnt from.
        out: with a model: folder to write.

    Raises SaapError as `resume`, and for options that do not go with what was given.

    Examples:
        >>> tuned = se.recover("model", recipe="recipe.yaml", tokens=512, out="tuned")
        >>> (tuned.model / "config.json").is_file()
        True
        >>> se.recover(run.folders["prune"]).folder == run.folders["recover"]
        True
    """
    folder = folder_of(place)
    if (folder / "stage.json").is_file() or not (folder.is_file() or (folder / "config.json").is_file()):
        if recipe or data or out:
            raise SaapError("--recipe, --data and --out go with a model: a stage folder has its own")
        return resume(folder, "recover", tokens=tokens, teacher=teacher, shard=shard, progress=progress)
    if out is None:
        raise SaapError(f"'{folder}' is a model: say with --out where to write")
    settings = recipe_of(recipe, model=folder, teacher=teacher, tokens=tokens, shard=shard, data=data)
    return run_chain(settings, ("recover",), {}, Path(out), tune=True, progress=progress)


def export(place: Place, *, progress: Listener = None) -> Run:
    """Write the artifacts, GGUF files and ONNX folders: `files` of the returned run. Raises SaapError as `resume`.

    Examples:
        >>> list(se.export(run.folders["recover"]).files)
        ['gguf-q4_0']
    """
    return resume(place, "export", progress=progress)


def write_report(place: Place, *, progress: Listener = None) -> Run:
    """Write report.json and report.html: `report` of the returned run. Raises SaapError as `resume`.

    Examples:
        >>> se.write_report(run.folders["gate"]).report.model.layers
        3
    """
    return resume(place, "report", progress=progress)


def resume(
    place: Place, stage: str, *, plan: str | Path | None = None, progress: Listener = None, **options: Any
) -> Run:
    """Run the stage named `stage` on the folder of the stage before it.

    The recipe is that of the last run which made or used the folder; `options` are those of `recipe_of` and replace
    what it says. Raises SaapError where `place` is no stage's folder, or where `stage` does not follow that stage.

    Examples:
        >>> se.resume(run.folders["verify"], "bench").folder == run.folders["bench"]
        True
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
    """Run stages of a chain.

    Args:
        names: the stages to run, in their order.
        folders: folders of the stages before them, by name.
        out: the run's folder.
        plan: plan.json to use instead of searching for one.
        after: the last stage in `folders`; None at the start of a chain.
        tune: recover the model as it is; nothing is pruned.
    """
    listener = progress_of(progress)
    _check_processes(recipe, names)
    with listener.bar("loading libraries", None):
        from saap_edge.chain.chains import COMPILE, TUNE, WRITING
        from saap_edge.chain.context import open_context
        from saap_edge.chain.run import run_stages
    with listener.bar("checking the recipe and the model", None):
        context = open_context(recipe, None if plan is None else Path(plan), listener.bar, tune)
    for warning in context.warnings:
        listener.note(warning)
    chain = WRITING if names == ("write",) else TUNE if tune else COMPILE
    outcome = run_stages(
        context, chain, names, out=out, folders=folders, after=after, done=listener.stage,
        before=told_ahead(listener),
    )  # fmt: skip
    return Run(out, tuple(outcome.results), outcome.links, outcome.exit_code, context.warnings)


def told_ahead(listener: Progress) -> Before:
    """What `run_stages` calls before it begins: it tells the listener what is about to be done."""
    from saap_edge.chain.ahead import announce

    return lambda context, steps: listener.ahead(announce(context, steps))


def _check_processes(recipe: Recipe, names: tuple[str, ...]) -> None:
    """Refuse several processes where a stage cannot share its work. Raises SaapError in each of them."""
    count = processes()
    if count > 1 and names not in (("recover",), ("score",)):
        raise SaapError("a launch of processes is for `saap-edge score` and `recover`: run other stages without it")
    if names == ("score",) and recipe.score.batches < count:
        raise SaapError(f"score.batches {recipe.score.batches} cannot be shared out over {count} processes")
    if names == ("score",) and count > 1 and recipe.score.running_fisher:
        raise SaapError("score.running_fisher goes from one batch to the next: score in one process")
    if names == ("recover",) and recipe.recover.batch % count:  # all see this, so that none waits for another
        raise SaapError(f"recover.batch {recipe.recover.batch} cannot be shared out over {count} processes")
