"""Judging, predicting and evaluating what was made."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saap_edge.api.recipes import budget_of, recipe_of
from saap_edge.api.results import Place, folder_of
from saap_edge.errors import SaapError
from saap_edge.progress import Listener, progress_of

if TYPE_CHECKING:
    from saap_edge.documents.gate import Gate
    from saap_edge.gating import Budget
    from saap_edge.prediction.cost import ArtifactCost
    from saap_edge.prediction.predict import Prediction
    from saap_edge.targets import Target

__all__ = ["evaluate", "gate", "predict", "predict_document"]


def gate(
    place: Place, budget: Budget | Mapping[str, Any] | str | Path | None = None, *,
    target: str | None = None, baseline: str | Path | None = None, progress: Listener = None,
) -> Gate:  # fmt: skip
    """Judge measurements against a budget.

    Args:
        place: report.json, bench.json or a run's --out folder; or a run, or the folder of its bench stage. A run or
            stage folder gets the gate stage of the chain: without `budget` the recipe's limits hold, and the verdicts
            are kept in a folder of their own.
        budget: limits (docs/gate.md): a YAML file, a document or a `Budget`.
        target: the board that the limits are for; the one of the report or recipe where absent.
        baseline: report.json or bench.json of another run, which changes in percent are relative to.

    Returns the gate document: `verdict` is "pass", "fail" or "inconclusive", `exit_code` 0, 1 or 3. Raises SaapError
    where there is nothing to judge, or nothing to judge by.

    Examples:
        >>> se.gate(run, "budget.yaml").verdict
        'pass'
        >>> small = se.gate("out/report.json", {"limits": {"file_mib": {"max": 0.001}}})
        >>> small.exit_code, small.verdicts[0].limit
        (1, '<= 0.001')
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
    """Run the gate stage as the chain does, without importing torch: a board has none."""
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
    context: int | None = None, threads: int | None = None, ram_mib: int | None = None, kv: str | None = None,
    ubatch: int | None = None,
) -> Prediction:  # fmt: skip
    """Predict speed and memory of an artifact on a board that is not at hand (docs/prediction.md).

    Args:
        artifact: a .gguf file, an ONNX folder, a bundle, or a folder with manifest.json.
        target: the board: its name, its YAML file or a `Target`.
        format: which artifact of a manifest.
        prompt_tokens: tokens of the prompt; 128 where absent, or the artifact's longest sequence if that is shorter.
        context: tokens in the KV cache while decoding; 512 where absent, or the longest sequence.
        threads: threads of the runtime; the board's own number where absent.
        ram_mib: memory of the board at hand, MiB; every size that the board is sold with where absent.
        kv: type of the KV cache: f16, q8_0 or q4_0 in llama.cpp; the runtime's own where absent.
        ubatch: tokens of a prompt that are computed at once; 512 in llama.cpp where absent.

    Each figure has the interval in which 80 % of the measurements lie that the fit has not seen. Raises SaapError for
    what is no artifact, for more than twice as many threads as the board has cores, and for a cache that the runtime or
    the model's heads do not allow.

    Examples:
        >>> found = se.predict(run.files["gguf-q4_0"], "rpi5")
        >>> found.decode_tok_s.low < found.decode_tok_s.value < found.decode_tok_s.high
        True
        >>> found.fits_from_mib
        2048
    """
    return _predicted(artifact, target, format, prompt_tokens, context, threads, ram_mib, kv, ubatch)[0]


def predict_document(
    artifact: str | Path, target: str | Target, *, format: str | None = None, prompt_tokens: int | None = None,
    context: int | None = None, threads: int | None = None, ram_mib: int | None = None, kv: str | None = None,
    ubatch: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Predict as `predict` does and return what `saap-edge predict --json` prints: with the cost and the conditions.

    Examples:
        >>> found = se.predict_document(run.files["gguf-q4_0"], "rpi5", prompt_tokens=64)
        >>> found["target"], found["conditions"]["prompt_tokens"], found["predicted"]
        ('rpi5', 64, True)
    """
    from dataclasses import asdict

    from saap_edge.artifacts import slow_ones
    from saap_edge.prediction.cost import savings

    prediction, cost, board, conditions = _predicted(
        artifact, target, format, prompt_tokens, context, threads, ram_mib, kv, ubatch
    )
    less = [] if prediction.fits else savings(cost, conditions["prompt_tokens"], conditions["context"], ubatch)
    return {
        "predicted": True, "artifact": str(artifact), "target": board.name, "cost": asdict(cost),
        "conditions": conditions, **asdict(prediction),
        "notes": [*slow_ones([cost.format]), *([f"takes less memory: {', '.join(less)}"] if less else [])],
    }  # fmt: skip


def _predicted(
    artifact: str | Path, target: str | Target, format: str | None, prompt_tokens: int | None, context: int | None,
    threads: int | None, ram_mib: int | None, kv: str | None, ubatch: int | None,
) -> tuple[Prediction, ArtifactCost, Target, dict[str, Any]]:  # fmt: skip
    from saap_edge.engines.options import EngineOptions, check_options
    from saap_edge.formats import described
    from saap_edge.prediction.cost import artifact_cost, cached_as
    from saap_edge.prediction.predict import predict as prediction_of
    from saap_edge.targets import load_target

    board = load_target(target) if isinstance(target, str) else target
    if threads and threads > 2 * board.core_count:
        raise SaapError(f"--threads {threads}: '{board.name}' has {board.core_count} cores")
    cost = cached_as(artifact_cost(Path(artifact), format), kv)
    if cost.prepared:
        raise SaapError(f"'{artifact}' was prepared for one machine: measure it there, or predict the bundle it is of")
    longest = cost.context or 512
    prompt, held = prompt_tokens or min(128, longest), context or min(512, longest)
    conditions = {
        "prompt_tokens": prompt, "context": held, "threads": threads or board.threads, "ram_mib": ram_mib, "kv": kv,
        "ubatch": ubatch,
    }  # fmt: skip
    check_options(described(cost.format).engine, EngineOptions(ubatch=ubatch))
    return prediction_of(cost, board, prompt, held, threads, ram_mib, ubatch), cost, board, conditions


def evaluate(
    path: str | Path, *, tasks: Sequence[str] = (), limit: int | None = None, text: str | Path | None = None,
    window: int = 256, formats: Sequence[str] = (), tokenizer: str | Path | None = None, threads: int | None = None,
    chat: bool = False, instructions: str | Path | None = None, answer_tokens: int | None = None,
    answers: str | Path | None = None, dense: str | Path | None = None, kv: str | None = None,
    progress: Listener = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure zero-shot accuracy, perplexity and chats, of a model or of the artifacts that ship.

    Args:
        path: a Hugging Face folder, a .gguf file, an ONNX folder, or an export folder.
        tasks: .jsonl files, or names of lm-eval's tasks.
        limit: most rows of each task, and most instructions; all where absent.
        text: UTF-8 file whose perplexity is measured.
        window: tokens of a window of that text.
        formats: which artifacts of an export folder; all where empty.
        tokenizer: folder or .gguf file with a tokenizer, where `path` has none.
        threads: threads of llama.cpp and ONNX Runtime; all CPUs where absent.
        chat: ask the model to follow instructions, by its runtime's own chat entry point. The options below go with it.
        instructions: .jsonl file of instructions; the package's own where absent.
        answer_tokens: tokens of an answer at most; 160 where absent.
        answers: .jsonl file that keeps the answers; a run that died goes on from it.
        dense: model whose answers these are compared with: a folder or file, or an export folder.
        kv: type of the KV cache of what is measured, f16, q8_0 or q4_0 in llama.cpp; the runtime's own where absent,
            and in `dense`.

    Returns the evaluation document (docs/evaluation.md). Raises SaapError for bad input, before anything is run where
    that can be seen.

    Examples:
        >>> found = se.evaluate(run.files["gguf-q4_0"], text="text.txt", window=32, threads=1)
        >>> [list(row) for row in found["perplexity"]]
        [['artifact', 'value', 'nll', 'window', 'tokens', 'text', 'sha256']]
        >>> found["perplexity"][0]["value"] > 1
        True
        >>> se.evaluate(run.files["gguf-q4_0"], chat=True)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        saap_edge.errors.SaapError: ... has no chat template: a base model follows no instructions. ...
    """
    if not tasks and text is None and not chat:
        raise SaapError("nothing to measure: give --task, --text or --chat")
    told = {"--instructions": instructions, "--answer-tokens": answer_tokens, "--answers": answers, "--dense": dense}
    extra = [name for name, value in told.items() if value is not None]
    if extra and not chat:
        raise SaapError(f"{extra[0]} goes with --chat")
    listener = progress_of(progress)
    with listener.bar("evaluate", None):
        from saap_edge.chat.instructions import ANSWER_TOKENS
        from saap_edge.evaluation.chat import ChatSettings
        from saap_edge.evaluation.subjects import Settings, evaluate_path

        chats = ChatSettings(_path(instructions), _path(answers), answer_tokens or ANSWER_TOKENS) if chat else None
        settings = Settings(
            tasks=tuple(map(str, tasks)), limit=limit, text=_path(text), window=window, formats=tuple(formats),
            tokenizer=_path(tokenizer), threads=threads or os.cpu_count() or 1, chat=chats, dense=_path(dense), kv=kv,
        )  # fmt: skip
        return evaluate_path(Path(path), settings, listener.bar)


def _path(place: str | Path | None) -> Path | None:
    return None if place is None else Path(place)
