"""Evaluates a Hugging Face folder, an export folder, a GGUF file, an ONNX or an OpenVINO folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from saap_edge.artifacts import context_of, engine_of, read_manifest, vocab_size_of
from saap_edge.engines.options import AS_IT_IS, EngineOptions, check_options
from saap_edge.engines.registry import EngineRecord, engine_at, engine_opening
from saap_edge.errors import SaapError
from saap_edge.evaluation.belongs import check_tokenizer
from saap_edge.evaluation.chat import ChatRun, ChatSettings, open_chat
from saap_edge.evaluation.likelihood import ArtifactScorer, Scorer, TorchScorer, window_perplexity
from saap_edge.evaluation.tasks import lm_eval_version, load_tasks
from saap_edge.gguf_input.folder import unpack
from saap_edge.model.checkpoint import open_checkpoint
from saap_edge.model.folder import load_model
from saap_edge.model.perplexity import text_hash, text_windows
from saap_edge.model.tokenizer import load_tokenizer
from saap_edge.progress import Bar

__all__ = ["Settings", "Subject", "evaluate_path", "find_subjects"]

IN_TORCH = "torch"  # a model folder, on a GPU if there is one; likelihoods are computed in this process


@dataclass(frozen=True)
class Subject:
    """One model or artifact to evaluate.

    Attributes:
        name: IN_TORCH, or its format.
        folder: its path.
        engine: name of the engine that runs it.
        open: loads it.
        options: what the engine is asked for.
    """

    name: str
    folder: Path
    engine: str
    open: Callable[[], Scorer]
    options: EngineOptions = AS_IT_IS


@dataclass(frozen=True)
class Settings:
    """Conditions of an evaluation.

    Attributes:
        tasks: zero-shot tasks, by lm-eval's names or as .jsonl files; none: perplexity only.
        limit: most rows of each task.
        text: text for perplexity; None: no perplexity.
        window: tokens in a window of the text.
        formats: artifacts of an export folder; none named: all.
        tokenizer: folder or GGUF file with the tokenizer, if not that of the evaluated path.
        threads: of the artifacts' engines.
        chat: how to evaluate chats; None: not at all.
        dense: model that chats are compared with; None: none.
        kv: type of the KV cache of what is measured, but not of `dense`; None: each runtime's own.
    """

    tasks: tuple[str, ...] = ()
    limit: int | None = None
    text: Path | None = None
    window: int = 256
    formats: tuple[str, ...] = ()
    tokenizer: Path | None = None
    threads: int = 1
    chat: ChatSettings | None = None
    dense: Path | None = None
    kv: str | None = None


def evaluate_path(path: Path, settings: Settings, bar: Bar) -> dict[str, Any]:
    """Evaluate everything at `path`; returns the evaluation document (schema 1), which is JSON-able.

    `bar` shows progress. Raises SaapError for bad input, before anything is run where possible.
    """
    subjects = find_subjects(path, settings.formats, settings.threads, EngineOptions(kv=settings.kv))
    chat = _chat(subjects, settings)
    document: dict[str, Any] = {
        "schema": 1, "evaluated": str(path), "threads": settings.threads, "limit": settings.limit,
        "kv": settings.kv,
        "lm_eval": lm_eval_version() if settings.tasks else None, "notes": _notes(path, subjects),
        "artifacts": [], "tasks": [], "perplexity": [], "chat": [],
    }  # fmt: skip
    if settings.tasks or settings.text is not None:
        _likelihoods(path, subjects, settings, bar, document)
    if chat is not None:
        document["chat"] = chat.run(bar)
    return document


def _chat(subjects: list[Subject], settings: Settings) -> ChatRun | None:
    """The chats that are asked for, after all that can be refused was."""
    if settings.chat is None:
        return None
    dense = find_subjects(settings.dense, (), settings.threads) if settings.dense else []
    return open_chat(subjects, dense, settings.chat, settings.limit, settings.threads)


def _likelihoods(path: Path, subjects: list[Subject], settings: Settings, bar: Bar, document: dict[str, Any]) -> None:
    """Add tasks, perplexity and what they took to the document."""
    origin = settings.tokenizer or _tokenizer_folder(path, subjects)
    origin = unpack(origin) if origin.is_file() else origin
    tokenizer = load_tokenizer(origin)
    windows = _windows(tokenizer, settings)
    # Here torch models are loaded and artifacts' headers read, so that errors show before anything is run.
    scorers = [subject.open() for subject in subjects]
    for subject, scorer in zip(subjects, scorers, strict=True):
        check_tokenizer(tokenizer, origin, subject.folder, scorer.vocab_size)
        if windows is not None:
            _check_windows(windows, subject, scorer)
    # Finding a task by name takes a while: lm-eval reads thousands of task files.
    with bar("reading tasks", None):
        tasks = load_tasks(list(settings.tasks)) if settings.tasks else []
    for subject, scorer in zip(subjects, scorers, strict=True):
        start = time.perf_counter()
        shortened = 0
        if tasks:
            from saap_edge.evaluation.zeroshot import ScorerLM, run_tasks

            lm = ScorerLM(scorer, tokenizer, bar, f"{subject.name}: answers")
            figures = run_tasks(lm, tasks, settings.limit)
            document["tasks"] += [{"artifact": subject.name, **asdict(figure)} for figure in figures]
            shortened = lm.shortened
        if windows is not None and settings.text is not None:
            document["perplexity"].append(
                {"artifact": subject.name, **_perplexity(subject, scorer, windows, settings.text, bar)}
            )
        document["artifacts"].append(
            {
                "name": subject.name, "context": scorer.context, "shortened_requests": shortened,
                "seconds": round(time.perf_counter() - start, 2),
            }
        )  # fmt: skip


def _notes(path: Path, subjects: list[Subject]) -> list[str]:
    """Warnings from opening a model folder."""
    return list(open_checkpoint(path).warnings) if any(subject.name == IN_TORCH for subject in subjects) else []


def _check_windows(windows: torch.Tensor, subject: Subject, scorer: Scorer) -> None:
    """Raise SaapError when windows are longer than the model's context, or have ids beyond its vocabulary."""
    if windows.shape[1] > scorer.context:
        raise SaapError(f"--window {windows.shape[1]} is more than the model's context of {scorer.context} tokens")
    largest = int(windows.max())
    if scorer.vocab_size is not None and largest >= scorer.vocab_size:
        raise SaapError(
            f"the text has token {largest}, '{subject.folder}' has {scorer.vocab_size} tokens: another tokenizer's?"
        )


def _windows(tokenizer: Any, settings: Settings) -> torch.Tensor | None:
    if settings.text is None:
        return None
    try:
        text = settings.text.read_text(encoding="utf-8")
        return text_windows(tokenizer, text, settings.window)
    except OSError as error:
        raise SaapError(f"cannot read --text '{settings.text}': {error.strerror}") from None
    except ValueError as error:  # not UTF-8, or shorter than one window
        raise SaapError(f"--text '{settings.text}': {error}") from None


def _perplexity(subject: Subject, scorer: Scorer, windows: torch.Tensor, text: Path, bar: Bar) -> dict[str, Any]:
    with bar(f"{subject.name}: windows of {text.name}", len(windows)) as advance:
        found = window_perplexity(scorer, windows, advance)
    return {
        "value": found.value if found.nll < 700 else None, "nll": found.nll, "window": found.window,
        "tokens": found.tokens, "text": text.name, "sha256": text_hash(text),
    }  # fmt: skip


def find_subjects(
    path: Path, formats: tuple[str, ...], threads: int, options: EngineOptions = AS_IT_IS
) -> list[Subject]:
    """The subjects at `path`; if `formats` names some, only these.

    Raises SaapError when nothing there can be evaluated, an artifact was changed since export, a format is missing, or
    an engine has not what `options` ask for.
    """
    if not path.exists():
        raise SaapError(f"no file or folder '{path}'")
    if (path / "manifest.json").is_file():
        found = {
            artifact.format: _artifact(
                artifact.format, path / artifact.path, threads, engine_of(artifact.format), options
            )
            for artifact in read_manifest(path).artifacts
        }
    elif (engine := _runtime(path)) is not None:
        name = f"{engine.kind} {path.name}"
        found = {name: _artifact(name, path, threads, engine.name, options)}
    elif (path / "config.json").is_file():
        open_checkpoint(path)  # before any library reads it
        found = {IN_TORCH: Subject(IN_TORCH, path, IN_TORCH, lambda: _torch_scorer(path))}
    else:
        raise SaapError(
            f"nothing to evaluate at '{path}': give a Hugging Face folder, an export folder (with manifest.json), "
            "a .gguf file, an ONNX or an OpenVINO folder"
        )
    missing = [name for name in formats if name not in found]
    if missing:
        raise SaapError(f"--format {missing[0]}: '{path}' has {', '.join(found)}")
    subjects = [found[name] for name in formats or found]
    for subject in subjects:
        check_options(subject.engine, options)
    return subjects


def _runtime(path: Path) -> EngineRecord | None:
    """The engine that opens an artifact at `path`; None where torch does, in this process, or nothing."""
    engine = engine_at(path) if path.suffix == ".gguf" else engine_opening(path)
    return None if engine is None or engine.name == IN_TORCH else engine


def _artifact(name: str, path: Path, threads: int, engine: str, options: EngineOptions) -> Subject:
    def scorer() -> ArtifactScorer:
        return ArtifactScorer(engine, path, threads, context_of(path), vocab_size_of(path), options)

    return Subject(name, path, engine, scorer, options)


def _torch_scorer(folder: Path) -> TorchScorer:
    model: Any = load_model(folder)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return TorchScorer(model, int(model.config.max_position_embeddings))


def _tokenizer_folder(path: Path, subjects: list[Subject]) -> Path:
    """Where the tokenizer is: in a Hugging Face or ONNX folder, or in a GGUF file. Raises SaapError if nowhere."""
    if path.is_file():
        return path
    manifest = path / "manifest.json"
    siblings = find_subjects(path, (), 1) if manifest.is_file() else subjects
    for subject in siblings:
        if (subject.folder / "tokenizer_config.json").is_file() or (subject.folder / "tokenizer.json").is_file():
            return subject.folder
    raise SaapError(f"no tokenizer beside '{path}': give the model's Hugging Face folder with --tokenizer")
