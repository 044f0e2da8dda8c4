"""The layout of gpt4all and mistralrs, which take hidden size / heads for the size of a head, whatever a file says.

A model that lost heads gets them back as zeros, and answers as before. What its attention had gained is lost: it has
the size, the KV cache and about the speed of the dense model's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from saap_edge.artifacts import engine_of
from saap_edge.engines.answers import relative_error
from saap_edge.engines.registry import engine_named
from saap_edge.engines.worker import Worker
from saap_edge.errors import SaapError
from saap_edge.exporting.gguf import write_gguf
from saap_edge.formats import format_of
from saap_edge.layouts.ollama import place
from saap_edge.layouts.registry import Given
from saap_edge.model.checkpoint import read_spec

__all__ = ["write"]

TOKENS = 48  # of the vocabulary, run through both files
SAME = 1e-3  # relative; what is added is zero, so that only sums may be taken in another order


def write(given: Given, out: Path) -> list[str]:
    """Write the GGUF file with whole heads into the empty folder `out`; returns what the user should read.

    Its answers are compared with those of the verified file. Raises SaapError where the layers differ, where zeros
    cannot fill the heads up, and where the answers differ.
    """
    spec, path = read_spec(given.model), out / given.path.name
    before = spec.attention
    if spec.uniform and before.heads * spec.head_dim == spec.hidden:
        place(given.path, path)
        return ["the model's heads fill its hidden size: this is the run's own file"]
    write_gguf(given.model, path, format_of(given.format).quantisation, whole_heads=True)
    tokens = np.random.default_rng(0).integers(0, spec.vocab_size, min(TOKENS, spec.context)).tolist()
    error = relative_error(_logits(path, given.format, tokens), _logits(given.path, given.format, tokens))
    if not error <= SAME:
        raise SaapError(f"'{given.path}': with heads of zeros it answers something else (error {error:.3g})")
    heads = spec.hidden // spec.head_dim
    return [f"{before.heads} heads and {heads - before.heads} of zeros: the speed of the narrower attention is lost"]


def _logits(path: Path, format: str, tokens: list[int]) -> np.ndarray:
    with Worker(engine_named(engine_of(format)).verifying, path, 1, len(tokens)) as worker:
        found: np.ndarray = worker.logits(tokens, "prefill")
        return found
