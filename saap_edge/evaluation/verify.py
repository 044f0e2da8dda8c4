"""The verify stage: compares each artifact, in a child process of its own, with the torch model of its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from saap_edge.artifacts import engine_of, read_manifest
from saap_edge.engines.answers import VERIFIED, VERIFIED_CHARACTERS
from saap_edge.engines.registry import engine_named
from saap_edge.engines.worker import Worker
from saap_edge.errors import ParityError
from saap_edge.evaluation.parity import Parity, check_parity, shipped_model
from saap_edge.evaluation.token_ids import Probe, differences, probes, tell
from saap_edge.exporting.weights import ExportWeights
from saap_edge.model.chat import read_chat
from saap_edge.model.tokenizer import load_tokenizer, plain_ids

__all__ = ["verify_folder"]


def verify_folder(
    artifacts: Path, model_folder: Path, text: str, threads: int, progress: Callable[[], None], told: Sequence[str] = ()
) -> list[Parity]:
    """Check all artifacts of an export folder against `model_folder`, the Hugging Face folder they were made from.

    Args:
        text: its first token ids are run.
        progress: called after each artifact.
        told: lines from `check_token_ids`, of differences that are already known.

    Raises SaapError when an artifact was changed, does not load or kills its process, and ParityError when its
    tokenizer gives other ids than tokenizer.json, or does not end a text where it should.
    """
    manifest = read_manifest(artifacts)
    tokenizer, ends = load_tokenizer(model_folder), read_chat(model_folder).ends
    # So many characters give enough token ids with any vocabulary, and few enough even if tokens are bytes.
    tokens = plain_ids(tokenizer, text[:VERIFIED_CHARACTERS])[:VERIFIED]
    weights, results, references = ExportWeights(model_folder), [], {}
    texts = probes(tokenizer, text, weights.spec.vocab_size)
    for artifact in manifest.artifacts:
        path = artifacts / artifact.path
        same = weights.layout(artifact.format, manifest.group) or artifact.format
        if same not in references:
            # Only one reference at a time is kept in memory.
            references = {same: shipped_model(model_folder, artifact.format, manifest.group, path)}
        engine = engine_named(engine_of(artifact.format))
        with Worker(engine.verifying, path, threads, VERIFIED) as worker:
            if engine.tokenizes:
                _check_tokens(worker, tokenizer, texts, told, f"{manifest.role} {artifact.format}")
                _check_ends(worker, ends, f"{manifest.role} {artifact.format}")
            shipped = (weights, artifact.format, manifest.group)
            results.append(check_parity(references[same], worker, shipped, manifest.role, tokens, tokenizer.decode))
        progress()
    return results


def _check_tokens(worker: Worker, tokenizer: Any, texts: list[Probe], told: Sequence[str], what: str) -> None:
    """Raise ParityError for differences in token ids that were not reported before."""
    for line in tell(worker.engine, differences(texts, tokenizer, worker.tokenize)):
        if line not in told:
            raise ParityError(f"{what}: {line}")


def _check_ends(worker: Worker, ends: tuple[int, ...], what: str) -> None:
    missing = sorted(set(ends) - set(worker.ends()))
    if missing:
        raise ParityError(f"{what}: {worker.engine} goes on at token ids {missing}, which end a text")
