"""Perplexity as llama.cpp's llama-perplexity counts it: chunks of 512 tokens, of which the second half is scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from saap_edge.engines.worker import Worker
from saap_edge.model.perplexity import text_windows
from saap_edge.model.tokenizer import load_tokenizer

__all__ = ["CHUNK", "chunks", "halves"]

CHUNK = 512


def chunks(model: Path, text: Path, count: int) -> list[list[int]]:
    """The first chunks of a text; a model whose tokenizer adds BOS has it in place of the first token."""
    tokenizer = load_tokenizer(model)
    found: list[list[int]] = text_windows(tokenizer, text.read_text(encoding="utf-8"), CHUNK, count).tolist()
    bos = tokenizer.bos_token_id
    if bos is not None and tokenizer("a")["input_ids"][0] == bos:
        found = [[bos, *window[1:]] for window in found]
    return found


def halves(file: Path, raw: list[list[int]], threads: int) -> list[float]:
    """Nats a token of each chunk's second half, in llama.cpp."""
    with Worker("llama.cpp", file, threads, CHUNK) as worker:
        scores = (worker.score([(window, CHUNK // 2 + 1)])[0][0] for window in raw)
        return [-float(np.mean(values)) for values in scores]
