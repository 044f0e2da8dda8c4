"""Measuring, judging, predicting and evaluating what was made."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saap_edge.api.recipes import budget_of, recipe_of
from saap_edge.api.results import Place, Run, folder_of
from saap_edge.api.stages import resume
from saap_edge.errors import SaapError
from saap_edge.progress import Listener, progress_of

if TYPE_CHECKING:
    from saap_edge.bundle.check import Check
    from saap_edge.documents.bench import Bench
    from saap_edge.documents.gate import Gate
    from saap_edge.gating import Budget
    from saap_edge.prediction.cost import ArtifactCost
    from saap_edge.prediction.predict import Prediction
    from saap_edge.targets import Target

__all__ = ["bench", "bench_stage", "evaluate", "gate", "predict", "predict_document", "verify"]

NO_STAGE = "is neither a bundle (no bundle.json) nor a stage folder (as OUT/stages/NAME-HASH)"


def verify(place: Place, *, progress: Listener = None) -> Run | Check:
    """Every artifact of a run answers as torch does; a bundle is whole and answers here as where it was made.

    Args:
        place: a run, or a folder of its export stage; or a bundle, a folder or .tar.zst.

    Returns the run, or for a bundle what was found (`exit_code` 0, 1 or 2). Raises SaapError where an artifact of a run
    was changed or answers otherwise.
    """
    path, listener = folder_of(place), progress_of(progress)
    if path.is_file() or (path / "bundle.json").is_file():
        from saap_edge.bundle.check import check_bundle

        with listener.bar(f"verifying {path}", None):
            return check_bundle(path)
    if not (path / "stage.json").is_file():
        raise SaapError(f"'{path}' {NO_STAGE}")
    _check_files(path)
    return resume(path, "verify", progress=listener)


def _check_files(folder: Path) -> None:
    """Raise SaapError where an artifact is not what its manifest says, even if it was verified when it still was."""
    from saap_edge.artifacts import read_manifest
    from saap_edge.cache import ancestors

    for name, made in ancestors(folder).items():
        if name in ("dense", "export"):
            read_manifest(made)


def bench(
    place: Place, against: str | Path | None = None, *, threads: int | None = None, prompt_tokens: int | None = None,
    decode_tokens: int | None = None, rounds: int | None = None, contexts: Sequence[int] | None = None,
    budget: Budget | Mapping[str, Any] | str | Path | None = None, max_rounds: int | None = None,
    target: str | None = None, host: str | None = None, ssh_config: Path | None = None,
    remote_python: str | None = None, remote_folder: str | None = None, keep: bool = False, progress: Listener = None,
) -> Bench:  # fmt: skip
    """Speed and memory of a bundle, of one against another, or of dense against pruned in a run.

    Args:
        place: a run or a folder of its verify stage, whose recipe says how to measure; or a bundle, for which all
            options are.
        against: a bundle of the same model to measure it beside.
        threads, prompt_tokens, decode_tokens, rounds: 64 tokens of prompt, 32 decoded and 7 rounds where absent.
        contexts: depths, in tokens, at which decoding is measured too.
        budget, max_rounds: add rounds while noise leaves a limit open; `target`: the board that the limits are for.
        host: measure on this board, by ssh; `ssh_config`, `remote_python`, `remote_folder`, `keep` go with it.

    Returns the bench document. Raises SaapError for bad input, and for options that do not go together.
    """
    path, listener = folder_of(place), progress_of(progress)
    if (path / "stage.json").is_file():
        return bench_stage(
            path, against=against, threads=threads, prompt_tokens=prompt_tokens, decode_tokens=decode_tokens,
            rounds=rounds, contexts=contexts, budget=budget, max_rounds=max_rounds, target=target, host=host,
            ssh_config=ssh_config, remote_python=remote_python, remote_folder=remote_folder, keep=keep,
            progress=listener,
        ).bench  # fmt: skip
    given: dict[str, Any] = {
        "threads": threads, "prompt_tokens": prompt_tokens, "decode_tokens": decode_tokens, "rounds": rounds,
        "contexts": tuple(contexts) if contexts else None,
    }  # fmt: skip
    options = {name: value for name, value in given.items() if value is not None}
    there = {"config": ssh_config, "python": remote_python, "folder": remote_folder, "keep": keep or None}
    there = {name: value for name, value in there.items() if value is not None}
    _check_host(host, there)
    if not path.is_file() and not (path / "bundle.json").is_file():
        raise SaapError(f"'{path}' is neither a bundle nor a stage folder (as OUT/stages/NAME-HASH)")
    options |= _looks(budget, max_rounds, rounds or 7, target)
    paths = [path, *([Path(against)] if against else [])]
    with listener.bar("bench", None):
        if host is None:
            return _bench_here(paths, options, listener)
        return _bench_there(host, there, paths, options, listener)


def bench_stage(place: Place, *, progress: Listener = None, **options: Any) -> Run:
    """The bench stage of a run, whose recipe says how to measure. Raises SaapError where `options` of `bench` are given
    all the same."""
    path = folder_of(place)
    there = {name: options.pop(name, None) for name in ("ssh_config", "remote_python", "remote_folder", "keep")}
    _check_host(options.get("host"), {name: value for name, value in there.items() if value})
    if any(options.values()):
        raise SaapError(f"'{path}' is a stage of a run: its recipe says how to measure (options are for bundles)")
    return resume(path, "bench", progress=progress)


def _check_host(host: str | None, there: Mapping[str, Any]) -> None:
    if there and host is None:
        raise SaapError("--ssh-config, --remote-python, --remote-dir and --keep go with --host")


def _looks(budget: Any, max_rounds: int | None, rounds: int, target: str | None) -> dict[str, Any]:
    """Options for rounds that are added while a limit is undecided. Raises SaapError for what does not go together."""
    from saap_edge.targets import load_target

    if budget is None:
        if max_rounds is not None:
            raise SaapError("--max-rounds goes with --budget: its limits say when to stop")
        return {}
    if max_rounds is not None and max_rounds < rounds:
        raise SaapError(f"--max-rounds {max_rounds} is less than --rounds {rounds}")
    looks = {"budget": budget_of(budget), "target": load_target(target) if target else None}
    return looks | ({} if max_rounds is None else {"max_rounds": max_rounds})


def _bench_here(paths: list[Path], options: dict[str, Any], listener: Any) -> Bench:
    from saap_edge.gating.rerun import asked_by
    from saap_edge.measuring.bundles import bench_bundles

    budget, target = options.pop("budget", None), options.pop("target", None)
    return bench_bundles(paths, listener.bar, **options, **asked_by(budget, target))


def _bench_there(host: str, there: dict[str, Any], paths: list[Path], options: dict[str, Any], listener: Any) -> Bench:
    from saap_edge.remote.installation import Board, bench_on_board

    for name in ("budget", "target"):
        if options.get(name) is not None:
            options[name] = options[name].model_dump(mode="json")
    return bench_on_board(paths, Board(host, **there), options, listener.bar, listener.say)


def gate(
    place: Place, budget: Budget | Mapping[str, Any] | str | Path | None = None, *,
    target: str | None = None, baseline: str | Path | None = None, progress: Listener = None,
) -> Gate:  # fmt: skip
    """Judge measurements against a budget.

    Args:
        place: report.json, bench.json or a run's --out folder; or a run, or a folder of its bench stage, where it is
            the stage of the chain: limits not given here are the recipe's, and verdicts are kept.
        budget: limits, a YAML file or a document.
        target: the board they are for; that of the report or recipe where absent.
        baseline: report.json or bench.json of another run, for changes in percent.

    Returns the gate document; its `verdict` is a word, its `exit_code` 0 pass, 1 fail, 3 inconclusive. Raises SaapError
    where there is nothing to judge, or nothing to judge by.
    """
    path = folder_of(place)
    if (path / "stage.json").is_file():
        if baseline is not None:
            raise SaapError(f"--baseline goes with a report: give '{path}/bench.json' or report.json, not the folder")
        return _gate_stage(path, budget, target, progress_of(progress))
    from saap_edge.gating.document import gate_document
    from saap_edge.gating.read import read_measured
    from saap_edge.targets import load_target

    if budget is None:
        raise SaapError("nothing to judge by: give --budget (a YAML file with limits)")
    limits = budget_of(budget)
    if not limits.limits:
        raise SaapError(f"'{budget}' has no limits: nothing to judge by")
    measured = read_measured(path)
    board = load_target(target) if target else measured.target
    return gate_document(measured, limits, board, read_measured(Path(baseline)) if baseline else None)


def _gate_stage(folder: Path, budget: Any, target: str | None, listener: Any) -> Gate:
    """As the chain does it, and without what only the chain needs (torch)."""
    from saap_edge.cache import ancestors, read_stage, run_stage
    from saap_edge.chain.stages.gate import gate_stage
    from saap_edge.documents.gate import Gate
    from saap_edge.targets import load_target

    recipe = recipe_of(read_stage(folder)["recipe"], budget=budget, target=target)
    folders, board = ancestors(folder), load_target(recipe.target)
    if "bench" not in folders:
        raise SaapError(f"gate works on the folder of bench or a later stage, and '{folder}' is none")
    if not recipe.budget.limits:
        raise SaapError("nothing to judge by: neither --budget nor the run's recipe has limits")
    stage = gate_stage(recipe.budget, board)
    result = run_stage(stage, folders, {}, folders["bench"].parent, recipe.model_dump(mode="json"))
    listener.stage(result)
    return Gate.read(result.folder / "gate.json")


def predict(
    artifact: str | Path, target: str | Target, *, format: str | None = None, prompt_tokens: int | None = None,
    context: int | None = None, threads: int | None = None, ram_mib: int | None = None,
) -> Prediction:  # fmt: skip
    """Speed and memory of an artifact on a board nobody has at hand, with the interval of the fit.

    Args:
        artifact: a .gguf, an ONNX folder, a bundle, or a folder with manifest.json, of which `format` names one.
        target: board, by name, YAML file or itself.
        prompt_tokens: 128 where absent, `context`: tokens in the KV cache while decoding, 512 where absent; as far as
            the artifact's context goes.
        threads: the board's own where absent; `ram_mib`: of this board, all its sizes where absent.

    Raises SaapError for what is no artifact, and for more threads than the board has.
    """
    return _predicted(artifact, target, format, prompt_tokens, context, threads, ram_mib)[0]


def predict_document(
    artifact: str | Path, target: str | Target, *, format: str | None = None, prompt_tokens: int | None = None,
    context: int | None = None, threads: int | None = None, ram_mib: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What `saap-edge predict --json` prints: the prediction with its cost and conditions. Arguments as `predict`."""
    from dataclasses import asdict

    prediction, cost, board, conditions = _predicted(artifact, target, format, prompt_tokens, context, threads, ram_mib)
    return {
        "predicted": True, "artifact": str(artifact), "target": board.name, "cost": asdict(cost),
        "conditions": conditions, **asdict(prediction),
    }  # fmt: skip


def _predicted(
    artifact: str | Path, target: str | Target, format: str | None, prompt_tokens: int | None, context: int | None,
    threads: int | None, ram_mib: int | None,
) -> tuple[Prediction, ArtifactCost, Target, dict[str, Any]]:  # fmt: skip
    from saap_edge.prediction.predict import artifact_cost
    from saap_edge.prediction.predict import predict as prediction_of
    from saap_edge.targets import load_target

    board = load_target(target) if isinstance(target, str) else target
    if threads and threads > 2 * board.core_count:
        raise SaapError(f"--threads {threads}: '{board.name}' has {board.core_count} cores")
    cost = artifact_cost(Path(artifact), format)
    longest = cost.context or 512
    prompt, held = prompt_tokens or min(128, longest), context or min(512, longest)
    conditions = {
        "prompt_tokens": prompt, "context": held, "threads": threads or board.threads, "ram_mib": ram_mib,
    }  # fmt: skip
    return prediction_of(cost, board, prompt, held, threads, ram_mib), cost, board, conditions


def evaluate(
    path: str | Path, *, tasks: Sequence[str] = (), limit: int | None = None, text: str | Path | None = None,
    window: int = 256, formats: Sequence[str] = (), tokenizer: str | Path | None = None, threads: int | None = None,
    progress: Listener = None,
) -> dict[str, Any]:  # fmt: skip
    """Zero-shot accuracy and perplexity, of a model or of what ships.

    Args:
        path: a Hugging Face folder, .gguf file or ONNX folder; or an export folder, of which `formats` names artifacts.
        tasks: .jsonl files or lm-eval's tasks by name; `limit`: only so many rows of each.
        text: UTF-8 file whose perplexity is measured, in windows of `window` tokens.
        tokenizer: folder or .gguf file with one, where `path` has none.
        threads: of llama.cpp and ONNX Runtime; all where absent.

    Returns the evaluation document. Raises SaapError for bad input, before anything is run where that can be seen.
    """
    if not tasks and text is None:
        raise SaapError("nothing to measure: give --task, --text or both")
    listener = progress_of(progress)
    with listener.bar("evaluate", None):
        from saap_edge.evaluation.subjects import Settings, evaluate_path

        settings = Settings(
            tasks=tuple(map(str, tasks)), limit=limit, text=None if text is None else Path(text), window=window,
            formats=tuple(formats), tokenizer=None if tokenizer is None else Path(tokenizer),
            threads=threads or os.cpu_count() or 1,
        )  # fmt: skip
        return evaluate_path(Path(path), settings, listener.bar)
