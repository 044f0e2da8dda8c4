"""Checks that a tokenizer belongs to a model: the ids of another tokenizer would give meaningless figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from saap_edge.bundle.check import vocabulary
from saap_edge.engines.gguf_header import read_strings
from saap_edge.errors import SaapError

__all__ = ["check_tokenizer"]

OTHERS = 0.1  # largest share of tokens with other names: converters rename special and unused ones


def check_tokenizer(tokenizer: Any, origin: Path, path: Path, vocab_size: int | None) -> None:
    """Raise SaapError when `tokenizer`, of the folder `origin`, does not belong to the model at `path`.

    It must not have more tokens than `vocab_size`, and its tokens must have the names that are stored at `path`.
    """
    # Added tokens are not counted: Gemma 3 has one beyond its model's vocabulary, which no text contains.
    if vocab_size is not None and tokenizer.vocab_size > vocab_size:
        raise SaapError(
            f"the tokenizer of '{origin}' is another model's: it has {tokenizer.vocab_size} tokens, '{path}' has "
            f"{vocab_size}"
        )
    own = _pieces(path) if origin != path else {}
    shared = sorted(own.keys() & set(range(len(tokenizer))))
    pieces = tokenizer.convert_ids_to_tokens(shared)
    other = sum(own[token] != piece for token, piece in zip(shared, pieces, strict=True))
    if other > OTHERS * len(shared):
        raise SaapError(
            f"the tokenizer of '{origin}' is another model's: {other} of {len(shared)} tokens are called otherwise in "
            f"'{path}'"
        )


def _pieces(path: Path) -> dict[int, str]:
    """Token names by id, of a GGUF file or of a folder's tokenizer.json; empty where there are none."""
    if path.suffix == ".gguf":
        return dict(enumerate(read_strings(path, "tokenizer.ggml.tokens") or []))
    try:
        document = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
        return {token: piece for piece, token in vocabulary(document).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
