"""The verify stage: each artifact in a child process of its own, against the torch model that holds its weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saap_edge.engines.worker import Worker
from saap_edge.errors import ParityError
from saap_edge.evaluate.answers import HARD_TEXT
from saap_edge.evaluate.parity import Parity, check_parity, shipped_model
from saap_edge.export.artifacts import engine_of, read_manifest
from saap_edge.export.weights import ExportWeights
from saap_edge.model.chat import read_chat
from saap_edge.model.tokenizer import load_tokenizer
from saap_edge.texts import VERIFIED, VERIFIED_CHARACTERS

__all__ = ["verify_folder"]


def verify_folder(
    artifacts: Path, model_folder: Path, text: str, threads: int, progress: Callable[[], None]
) -> list[Parity]:
    """Check all artifacts of an export folder against `model_folder`, the Hugging Face folder they were made from.

    `text` gives the token ids that are run. Raises SaapError when an artifact was changed, does not load or kills its
    process, ParityError when its tokenizer gives other ids than transformers, or a text would not end where it should.
    """
    manifest = read_manifest(artifacts)
    tokenizer, ends = load_tokenizer(model_folder), read_chat(model_folder).ends
    # Token ids of plain text: enough for any vocabulary, and cheap even where tokens are bytes.
    tokens = tokenizer(text[:VERIFIED_CHARACTERS], add_special_tokens=False)["input_ids"][:VERIFIED]
    weights, results, references = ExportWeights(model_folder), [], {}
    for artifact in manifest.artifacts:
        path = artifacts / artifact.path
        same = weights.layout(artifact.format, manifest.group) or artifact.format
        if same not in references:
            # One at a time: memory.
            references = {same: shipped_model(model_folder, artifact.format, manifest.group, path)}
        with Worker(engine_of(artifact.format), path, threads, VERIFIED) as worker:
            if artifact.format.startswith("gguf"):
                _check_tokens(worker, tokenizer, text, f"{manifest.role} {artifact.format}")
                _check_ends(worker, ends, f"{manifest.role} {artifact.format}")
            shipped = (weights, artifact.format, manifest.group)
            results.append(check_parity(references[same], worker, shipped, manifest.role, tokens, tokenizer.decode))
        progress()
    return results


def _check_tokens(worker: Worker, tokenizer: Any, text: str, what: str) -> None:
    for sample in (HARD_TEXT, text[:VERIFIED_CHARACTERS]):
        expected = tokenizer(sample, add_special_tokens=False)["input_ids"]
        actual = worker.tokenize(sample, False, False)
        if actual != expected:
            at = next((i for i, (a, b) in enumerate(zip(actual, expected, strict=False)) if a != b), len(expected) - 1)
            near = re.sub(r"\s+", " ", tokenizer.decode(expected[max(0, at - 2) : at + 3]))
            raise ParityError(f"{what}: llama.cpp splits text into other tokens than transformers, near '{near}'")


def _check_ends(worker: Worker, ends: tuple[int, ...], what: str) -> None:
    missing = sorted(set(ends) - set(worker.ends()))
    if missing:
        raise ParityError(f"{what}: llama.cpp goes on at token ids {missing}, which end a text")
