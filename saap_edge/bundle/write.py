"""Making a bundle: one verified artifact, with everything that a board needs to run and to check it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from saap_edge import __version__
from saap_edge.artifacts import context_of, engine_of
from saap_edge.bundle.archive import SUFFIX, pack, zstandard
from saap_edge.bundle.check import check_bundle, columns
from saap_edge.bundle.find import Source, base_licence, find_source, licence_files
from saap_edge.bundle.launch import launch_files, program_of
from saap_edge.bundle.schema import (
    BUNDLE_FILE,
    LOGITS_FILE,
    VERSION,
    Answers,
    Board,
    Bundle,
    Tokenizer,
    list_files,
)
from saap_edge.cache import library_versions
from saap_edge.engines.answers import DIGITS, HARD_TEXT
from saap_edge.engines.child import VOCABULARY
from saap_edge.engines.options import AS_IT_IS, EngineOptions, check_options
from saap_edge.engines.registry import engine_named
from saap_edge.engines.worker import Worker
from saap_edge.errors import ParityError, SaapError

__all__ = ["write_bundle"]

PROMPT = (
    "The river runs through the old town, past the mill and the market, and in spring it floods the meadows where the "
    "horses graze. The people who live there"
)
TOKENS = 48  # of the prompt and its continuation together: half each, or less of a short prompt


def write_bundle(
    path: Path, out: Path, artifact_format: str | None = None, target: str | None = None,
    options: EngineOptions = AS_IT_IS,
) -> Bundle:  # fmt: skip
    """Make a bundle of an artifact of a run, found by `find_source`, at `out`: a folder, or a file named *.tar.zst.

    `options` are what run.sh and `bench` ask of the runtime; the artifact is run with them once.

    The bundle is checked as a board checks it before it gets its name; a bundle that fails leaves nothing behind.
    Raises SaapError when `out` exists or something is missing, ParityError when a second run answers otherwise.
    """
    if out.exists() or out.is_symlink():
        raise SaapError(f"--out '{out}' is in the way: move it, or choose another name")
    archived = out.name.endswith(SUFFIX)
    if archived:
        zstandard()
    source = find_source(path, artifact_format, target)
    check_options(engine_of(source.artifact.format), options)
    existed = out.parent.is_dir()
    temporary = out.parent / f".tmp-{out.name}-{os.getpid()}"
    folder = temporary / (out.name.removesuffix(SUFFIX) or "bundle")
    try:
        folder.mkdir(parents=True)
        bundle = _fill(source, folder, options)
        check = check_bundle(folder)
        if check.exit_code:
            raise ParityError(f"the bundle fails its own check: {(check.problems + check.differences)[0]}")
        if archived:
            pack(folder, temporary / out.name)
        (temporary / out.name).rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if not existed and out.parent.is_dir() and not any(out.parent.iterdir()):
            out.parent.rmdir()
    return bundle


def _fill(source: Source, folder: Path, options: EngineOptions) -> Bundle:
    artifact, manifest, board = source.artifact, source.manifest, source.target
    model = _copy_model(source, folder)
    tokenizer_file = _copy_tokenizer(source.model, folder, model)
    for path in licence_files(source.base):
        shutil.copyfile(path, folder / path.name)
    threads = min(board.threads, os.cpu_count() or 1)
    engine = engine_named(engine_of(artifact.format))
    with Worker(engine.verifying, folder / model, threads, TOKENS) as worker:
        loaded = worker.loaded
        tokenizer, answers = _record(worker, folder, tokenizer_file, source)
    if options != AS_IT_IS:  # raises where they do not go with the model
        with Worker(engine_of(artifact.format), folder / model, threads, TOKENS, options) as worker:
            worker.generate(answers.tokens[: answers.prompt_tokens], 1)
    launch = launch_files(
        artifact.format, model, board.threads, context_of(folder / model), PROMPT, options,
        own_ids=_ids_differ(program_of(artifact.format).vocabulary, folder / tokenizer_file),
    )  # fmt: skip
    for name, text in launch.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "run.sh").chmod(0o755)
    bundle = Bundle(
        version=VERSION, saap_edge=__version__, role=manifest.role, format=artifact.format, model=model,
        vocab_size=loaded["vocab_size"], kv_bytes_per_token=loaded["kv_bytes_per_token"], tuned=manifest.tuned,
        group=manifest.group, layers=manifest.layers, lineage=source.lineage, versions=library_versions(),
        board=Board(name=board.name, title=board.title, cpu=board.cpu, threads=board.threads),
        kv=options.kv, ubatch=options.ubatch, base_licence=base_licence(source.base), tokenizer=tokenizer,
        answers=answers, files=list_files(folder),
    )  # fmt: skip
    (folder / BUNDLE_FILE).write_text(bundle.model_dump_json(indent=1), encoding="utf-8")
    return bundle


def _copy_model(source: Source, folder: Path) -> str:
    """Copy the artifact. Returns its name in the bundle, as model-q4_0.gguf or model-int4."""
    path = source.folder / source.artifact.path
    if path.is_file():
        shutil.copyfile(path, folder / path.name)
        return path.name
    shutil.copytree(path, folder / f"model-{path.name}", copy_function=shutil.copyfile)
    return f"model-{path.name}"


def _copy_tokenizer(source: Path, folder: Path, model: str) -> str:
    """Copy the tokenizer beside a GGUF file; an ONNX folder holds its own. Returns the path of tokenizer.json."""
    if (folder / model).is_dir():
        return f"{model}/tokenizer.json"
    from saap_edge.model.tokenizer_files import copy_tokenizer

    (folder / "tokenizer").mkdir()
    copy_tokenizer(source, folder / "tokenizer")
    return "tokenizer/tokenizer.json"


def _record(worker: Worker, folder: Path, tokenizer_file: str, source: Source) -> tuple[Tokenizer, Answers]:
    """Record token ids of one text and the artifact's answers to another; the logits go to expected.npy."""
    split: Any = _load_tokenizer(folder / tokenizer_file)
    hard = split.encode(HARD_TEXT, add_special_tokens=False).ids
    pieces = [split.id_to_token(token) for token in hard]
    prompt = split.encode(PROMPT, add_special_tokens=False).ids[: TOKENS // 2]
    tokens = prompt + worker.generate(prompt, TOKENS - len(prompt))
    logits = worker.logits(tokens, "mixed")
    np.save(folder / LOGITS_FILE, logits[:, columns(logits.shape[1])])
    centred = logits - logits.mean(axis=1, keepdims=True)
    second, first = np.partition(logits, -2, axis=1)[:, -2:].T
    answers = Answers(
        prompt=split.decode(prompt), prompt_tokens=len(prompt), tokens=tokens, text=split.decode(tokens[len(prompt) :]),
        likeliest=logits.argmax(axis=1).tolist(),
        margins=((first - second) / np.sqrt(np.square(centred).mean(axis=1))).tolist(), error=source.error,
        tolerance=source.tolerance,
    )  # fmt: skip
    return Tokenizer(file=tokenizer_file, text=HARD_TEXT, ids=hard, pieces=pieces), answers


def _ids_differ(vocabulary: str | None, tokenizer_file: Path) -> bool:
    """Whether the tokenizer of that engine gives plain text other ids than tokenizer.json, or does not take it."""
    if vocabulary is None:
        return False
    split = _load_tokenizer(tokenizer_file)
    try:
        with Worker(f"{vocabulary}{VOCABULARY}", tokenizer_file.parent, 1, 1) as worker:
            return any(
                worker.tokenize(text, False, True) != split.encode(text, add_special_tokens=False).ids
                for text in (HARD_TEXT, DIGITS, PROMPT)
            )
    except SaapError:
        return True


def _load_tokenizer(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer as Splitter
    except ImportError:
        raise SaapError("making a bundle needs the package tokenizers: pip install 'saap-edge[compile]'") from None
    try:
        splitter = Splitter.from_file(str(path))
        splitter.encode_special_tokens = True  # texts are plain text
        return splitter
    except Exception as error:  # the binding raises nothing more specific
        raise SaapError(f"'{path}' cannot be loaded: {error}") from None
