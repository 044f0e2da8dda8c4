"""Checking a bundle on the board that will run it, without torch: every byte, the tokenizer, the answers."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from saap_edge.artifacts import engine_of
from saap_edge.bundle.archive import unpacked
from saap_edge.bundle.schema import BUNDLE_FILE, LOGITS_FILE, Bundle, read_bundle
from saap_edge.engines.answers import relative_error
from saap_edge.engines.registry import engine_named
from saap_edge.engines.worker import Worker
from saap_edge.errors import EXIT_FAILED, EXIT_INPUT, EXIT_OK, SaapError
from saap_edge.files import file_hash

__all__ = ["MODES", "Check", "check_bundle", "columns", "file_problems", "vocabulary"]

# Logits are compared at this many places of the vocabulary: enough for an RMS, and expected.npy stays small.
COLUMNS = 1024
# Another token may be the likeliest if the recorded one was ahead by less than TIE times the tolerance. The difference
# of two logits is off by sqrt(2) times their RMS error, and 6 is about four standard deviations of that.
TIE = 6.0
MODES = ("prefill", "mixed")  # the whole text at once; the first half at once, then token by token


@dataclass
class Check:
    """What a check of a bundle found.

    Attributes:
        bundle: what bundle.json says; None where it cannot be read.
        problems: how the bundle is damaged (exit code 2).
        differences: how its answers differ here from those recorded (exit code 1).
        notes: what could not be checked.
        error: worst relative error of the logits against those recorded; None where the artifact was not run.
        tolerance: the error that may be; None where the artifact was not run.
    """

    bundle: Bundle | None = None
    problems: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: float | None = None
    tolerance: float | None = None

    @property
    def exit_code(self) -> int:
        """0 good, 1 it answers otherwise here, 2 damaged."""
        return EXIT_INPUT if self.problems else EXIT_FAILED if self.differences else EXIT_OK

    def as_dict(self) -> dict[str, Any]:
        """The check as a JSON document: what `saap-edge verify --json` prints."""
        bundle = self.bundle
        return {
            "exit_code": self.exit_code, "format": bundle and bundle.format, "role": bundle and bundle.role,
            "board": bundle and bundle.board.name, "lineage": bundle and bundle.lineage,
            "problems": self.problems, "differences": self.differences, "notes": self.notes,
            "error": self.error if self.error is not None and np.isfinite(self.error) else None,
            "tolerance": self.tolerance, "text": bundle and bundle.answers.text,
        }  # fmt: skip


def check_bundle(path: Path) -> Check:
    """Check a bundle, a folder or a .tar.zst file. Raises nothing: the result says what is wrong with it."""
    check = Check()
    try:
        if path.is_dir():
            _check_folder(path, check)
        else:
            with unpacked(path) as folder:
                _check_folder(folder, check)
    except SaapError as error:
        check.problems.append(str(error))
    except OSError as error:
        check.problems.append(f"cannot read '{path}': {error.strerror or error} ({error.filename})")
    return check


def columns(vocab_size: int) -> np.ndarray:
    """Token ids whose logits are recorded, int64: all, or COLUMNS of them at even distances from the first to the last.

    >>> columns(3).tolist(), len(columns(50_000)), columns(50_000)[-1].item()
    ([0, 1, 2], 1024, 49999)
    """
    return np.linspace(0, vocab_size - 1, min(COLUMNS, vocab_size)).round().astype(np.int64)


def _check_folder(folder: Path, check: Check) -> None:
    """Check files, tokenizer, artifact and answers in this order: nothing is loaded whose bytes have changed."""
    check.bundle = bundle = read_bundle(folder)
    check.problems += file_problems(folder, bundle)
    if check.problems:
        return
    check.problems += _vocabulary_problems(folder, bundle)
    if check.problems:
        return
    check.problems += _split_problems(folder, bundle, check.notes)
    threads = min(bundle.board.threads, os.cpu_count() or 1)
    engine = engine_named(engine_of(bundle.format)).verifying
    with Worker(engine, folder / bundle.model, threads, len(bundle.answers.tokens)) as worker:
        check.problems += _artifact_problems(worker, bundle)
        if not check.problems:
            _compare(worker, folder, bundle, check)


def file_problems(folder: Path, bundle: Bundle) -> list[str]:
    """What is wrong with the files of a bundle, a line each: missing, a link, cut short, changed, or not listed."""
    found: dict[str, Path] = {}
    problems = []
    for parent, folders, names in os.walk(folder):  # does not follow links
        for name in [*names, *(name for name in folders if (Path(parent) / name).is_symlink())]:
            path = Path(parent) / name
            found[path.relative_to(folder).as_posix()] = path
    for file in bundle.files:
        here = found.pop(file.path, None)
        if here is None:
            problems.append(f"'{file.path}' is missing")
        elif here.is_symlink() or not here.is_file():
            problems.append(f"'{file.path}' is not a plain file")
        elif here.stat().st_size != file.bytes:
            problems.append(f"'{file.path}' has {here.stat().st_size} bytes, not {file.bytes}: cut short or replaced")
        elif file_hash(here) != file.sha256:
            problems.append(f"'{file.path}' is damaged or was changed: its sha256 differs")
    found.pop(BUNDLE_FILE, None)
    extra = [f"'{path}' does not belong to the bundle" for path in sorted(found)]
    return problems + extra[:10] + ([f"and {len(extra) - 10} more files"] if len(extra) > 10 else [])


def _vocabulary_problems(folder: Path, bundle: Bundle) -> list[str]:
    """Problems where the vocabulary of tokenizer.json does not fit the artifact or names the recorded ids otherwise."""
    tokenizer = bundle.tokenizer
    try:
        document = json.loads((folder / tokenizer.file).read_text(encoding="utf-8"))
        words, text = vocabulary(document), vocabulary(document | {"added_tokens": []})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [f"'{tokenizer.file}' is not a tokenizer.json with a vocabulary"]
    largest = max(text.values(), default=-1)  # added tokens may have no row in the model: no plain text gives them
    if largest >= bundle.vocab_size:
        return [
            f"'{tokenizer.file}' does not belong to the model: it has token {largest}, the model {bundle.vocab_size} "
            "tokens"
        ]
    for piece, token in zip(tokenizer.pieces, tokenizer.ids, strict=True):
        if words.get(piece) != token:
            return [
                f"'{tokenizer.file}' does not belong to the model: its '{piece}' is token {words.get(piece)}, "
                f"the model's is {token}"
            ]
    return []


def vocabulary(document: Any) -> dict[str, int]:
    """Ids by piece of a tokenizer.json, added tokens included.

    BPE and WordPiece store a mapping, Unigram a list of pieces with scores. Raises KeyError, TypeError, ValueError or
    AttributeError for what is no tokenizer.json.

    >>> vocabulary({"model": {"vocab": [["<unk>", 0.0], ["a", -1.5]]}, "added_tokens": [{"content": "</s>", "id": 2}]})
    {'<unk>': 0, 'a': 1, '</s>': 2}
    """
    words = document["model"]["vocab"]
    pieces = dict(words) if isinstance(words, dict) else {piece: index for index, (piece, _) in enumerate(words)}
    pieces |= {token["content"]: token["id"] for token in document.get("added_tokens") or []}
    return {str(piece): int(token) for piece, token in pieces.items()}


def _split_problems(folder: Path, bundle: Bundle, notes: list[str]) -> list[str]:
    """Problems where tokenizer.json splits the recorded text otherwise. A note where its library is not installed."""
    try:
        import tokenizers
    except ImportError:
        notes.append("package tokenizers is not here: of tokenizer.json the vocabulary was checked, not the splitting")
        return []
    tokenizer = bundle.tokenizer
    try:
        loaded = tokenizers.Tokenizer.from_file(str(folder / tokenizer.file))
        loaded.encode_special_tokens = True  # as it was recorded
        ids = loaded.encode(tokenizer.text, add_special_tokens=False).ids
    except Exception as error:  # the binding raises nothing more specific
        return [f"'{tokenizer.file}' cannot be loaded: {error}"]
    if ids != tokenizer.ids:
        return [f"'{tokenizer.file}' does not belong to the model: it splits the recorded text into other tokens"]
    return []


def _artifact_problems(worker: Worker, bundle: Bundle) -> list[str]:
    """Problems where the loaded artifact is not what bundle.json describes, or its own tokenizer (GGUF) splits the
    recorded text otherwise."""
    problems = [
        f"'{bundle.model}' has {name} {worker.loaded[name]}, bundle.json says {told}"
        for name, told in (("vocab_size", bundle.vocab_size), ("kv_bytes_per_token", bundle.kv_bytes_per_token))
        if worker.loaded[name] != told
    ]
    own = engine_named(worker.engine).tokenizes
    if own and worker.tokenize(bundle.tokenizer.text, False, False) != bundle.tokenizer.ids:
        problems.append(
            f"'{bundle.model}': {worker.engine} splits the recorded text into other tokens: not its tokenizer"
        )
    answers = bundle.answers
    if not all(0 <= token < bundle.vocab_size for token in (*answers.tokens, *answers.likeliest)):
        problems.append(f"'{BUNDLE_FILE}': answers have tokens outside the vocabulary")
    return problems


def _compare(worker: Worker, folder: Path, bundle: Bundle, check: Check) -> None:
    """Run the recorded tokens and compare the logits.

    Both runtimes, here and where the bundle was made, approximate the same torch model. There, the error was
    `answers.error`; here, verify would allow `answers.tolerance`. So the two may be error + tolerance apart.
    """
    answers, places = bundle.answers, columns(bundle.vocab_size)
    expected = _load_logits(folder / LOGITS_FILE, (len(answers.tokens), len(places)))
    if expected is None:
        check.problems.append(f"'{LOGITS_FILE}' does not hold the logits of {len(answers.tokens)} tokens")
        return
    check.error, check.tolerance = 0.0, answers.error + answers.tolerance
    for mode in MODES:
        logits = worker.logits(answers.tokens, mode)
        error = relative_error(logits[:, places], expected)
        check.error = max(check.error, error)
        if error > check.tolerance:
            check.differences.append(
                f"answers differ ({mode}): relative error {error:.3g}, tolerance {check.tolerance:.3g}"
            )
        check.differences += _other_choices(logits, bundle, check.tolerance, mode)


def _other_choices(logits: np.ndarray, bundle: Bundle, tolerance: float, mode: str) -> list[str]:
    """The first place where another token than the recorded one is the likeliest; near-ties do not count."""
    answers = bundle.answers
    for at, (chosen, expected) in enumerate(zip(logits.argmax(axis=1), answers.likeliest, strict=True)):
        if chosen != expected and answers.margins[at] > TIE * tolerance:
            return [
                f"answers differ ({mode}): after {at + 1} tokens the likeliest is {chosen}, where {expected} was ahead "
                f"by {answers.margins[at]:.3g}"
            ]
    return []


def _load_logits(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    try:
        logits: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return logits if logits.shape == shape and logits.dtype == np.float32 and np.isfinite(logits).all() else None
